"""What every compressor is: a map from a flat vector to an update, and the state that the server shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.types import Layout
from hetfl.updates import Update
from hetfl.wire import as_sent


class Compressor(ABC):
    """A compressor C: p -> u. It may keep state that the server shares with all clients, never a client's own."""

    @abstractmethod
    def compress(
        self,
        p_D: Tensor,
        *,
        lr: float,
        layout: Layout | None = None,
        client: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Update:
        """Return what is sent of a vector; ``p_D`` is never modified, and the update may share its memory.

        Args:
            p_D: the delta plus the residual, shape (D,), floating point, on any device.
            lr: the clients' learning rate γ_t of the round.
            layout: names, shapes and offsets of the tensors in ``p_D``, for compressors that treat them apart and for
                messages.
            client: the client's id, for messages.
            generator: source of randomness of a compressor that draws.

        Raises:
            ValueError: ``p_D`` is not a flat vector, or holds NaN or Inf.
        """

    def split(
        self,
        delta_D: Tensor,
        residual_D: Tensor | None,
        *,
        lr: float,
        half_precision: bool = False,
        layout: Layout | None = None,
        client: int | None = None,
        generator: torch.Generator | None = None,
        out: Tensor | None = None,
    ) -> tuple[Update, Tensor]:
        """Return what is sent of p = Δ + e, and what is left: p − u with u as the receiver reads it, shape (D,).

        Args:
            delta_D: Δ, shape (D,); not modified.
            residual_D: e, shape (D,); None: 0.
            lr: as in :meth:`compress`.
            half_precision: whether values travel as float16.
            layout: as in :meth:`compress`.
            client: as in :meth:`compress`.
            generator: as in :meth:`compress`.
            out: shape (D,), may take what is left.

        Raises:
            ValueError: as :meth:`compress` does.
        """
        p_D = delta_D if residual_D is None else delta_D + residual_D
        update = self.compress(p_D, lr=lr, layout=layout, client=client, generator=generator)
        return update, as_sent(update, half_precision).left_of(p_D)

    @property
    def expands(self) -> bool:
        """Whether ‖C(p) − p‖ may exceed ‖p‖ by far, so that error feedback would not end. By default not."""
        return False

    def shared_bytes(self, layout: Layout) -> int:
        """Return the bytes of server-shared state that a client must be sent to compress a vector. By default none."""
        return 0

    def observe(self, update: Update, layout: Layout | None = None) -> None:
        """Learn from an update that the server accepted, of a vector with a layout. By default nothing."""

    def end_round(self) -> None:
        """Close the round after its last accepted update. By default nothing."""

    def threshold(self, lr: float) -> float | None:
        """Return the threshold λ in force at a learning rate; None if there is none, or none yet."""
        return None

    def describe(self) -> str:
        """Return the compressor with its settings in short text, by which a checkpoint knows it again."""
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.settings().items())})"

    def __repr__(self) -> str:
        return self.describe()

    def settings(self) -> dict[str, object]:
        """Return the constructor's arguments by name. By default none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the server-shared state in plain types and tensors; settings of the constructor are not in it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""


def require_finite(p_D: Tensor, layout: Layout | None, client: int | None) -> None:
    """Refuse a vector that cannot be compressed.

    Raises:
        ValueError: ``p_D`` is not a flat vector.
        RefusedUpdate: it holds NaN or Inf; the message names the client and the tensor.
    """
    sender = "a client" if client is None else f"client {client}"
    if p_D.dim() != 1:
        raise ValueError(f"Expected a flat vector from {sender} but got shape {tuple(p_D.shape)}")
    finite_D = torch.isfinite(p_D)
    if bool(finite_D.all()):
        return
    position = int(finite_D.logical_not().nonzero()[0])
    where = f"position {position}"
    if layout is not None:
        tensor = bisect_right(layout.offsets, position) - 1
        where = f"position {position - layout.offsets[tensor]} of tensor {list(layout.shapes)[tensor]!r}"
    raise RefusedUpdate(f"Expected finite entries from {sender} but got {p_D[position].item()} at {where}")


def require_density(density: float) -> None:
    """Refuse a share of entries that is not one.

    Raises:
        ConfigurationError: ``density`` is outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ConfigurationError(f"Expected density in (0, 1] but got {density}")
