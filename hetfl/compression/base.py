"""What every compressor is: a map from a flat vector to an update, and the state that the server shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.types import Layout, Update


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

    def observe(self, update: Update) -> None:
        """Learn from an update that the server accepted. By default nothing."""

    def end_round(self) -> None:
        """Close the round after its last accepted update. By default nothing."""

    def threshold(self, lr: float) -> float | None:
        """Return the threshold λ in force at a learning rate; None if there is none, or none yet."""
        return None

    def describe(self) -> str:
        """Return the compressor with its settings in short text, by which a checkpoint knows it again."""
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.settings().items())})"

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
