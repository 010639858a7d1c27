"""What every compressor is: a map from a flat vector to an update, and the state that the server shares."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetfl.compression import threshold_pass
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Layout
from hetfl.piece import Facts, described, settings_of
from hetfl.types import Range, Report
from hetfl.updates import SparseUpdate, Update
from hetfl.wire import as_sent


@dataclass(frozen=True)
class Context:
    """What a compressor may know of a vector besides its entries.

    Attributes:
        lr: the clients' learning rate γ_t of the round.
        layout: names, shapes and offsets of the tensors in the vector, for compressors that treat them apart and for
            messages; None: not known.
        client: the client's id, for messages.
        generator: source of randomness of a compressor that draws; None: torch's own.
        uplink: bytes per second from the client; None: not known.
        itemsize: bytes that a value takes on the wire, a part of one for a code; None: those of the vector's dtype.
        reported: extras of the client's report that :meth:`Compressor.report` returned for its delta.
        relative_samples: the client's training samples over the mean over all clients.
        start: returns the values that the client began the round with, shape (D,); None: they are not known.
    """

    lr: float
    layout: Layout | None = None
    client: int | None = None
    generator: torch.Generator | None = None
    uplink: float | None = None
    itemsize: float | None = None
    reported: Mapping[str, float] = field(default_factory=dict)
    relative_samples: float = 1.0
    start: Callable[[], Tensor] | None = None


class Compressor(ABC):
    """A compressor C: p -> u. It may keep state that the server shares with all clients, never a client's own."""

    sparse = True
    """Whether updates may leave entries out, which then count as 0."""

    @abstractmethod
    def apply(self, p_D: Tensor, context: Context) -> Update:
        """Return C(p); ``p_D`` is never modified, and the update may share its memory.

        Args:
            p_D: the delta plus the residual, shape (D,), finite floating-point numbers, on any device.
            context: what else is known.
        """

    def compress(
        self,
        p_D: Tensor,
        *,
        lr: float,
        layout: Layout | None = None,
        client: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Update:
        """Return what is sent of a vector: :meth:`apply`, once the vector is known to be finite.

        Args:
            p_D: the delta plus the residual, shape (D,), floating point, on any device.
            lr: as in :class:`Context`, and so the others.
            layout: names, shapes and offsets of the tensors in ``p_D``.
            client: the client's id.
            generator: source of randomness.

        Raises:
            ValueError: ``p_D`` is not a flat vector.
            RefusedUpdate: it holds NaN or Inf.
        """
        return self.compress_in(p_D, Context(lr, layout, client, generator))

    def split(
        self,
        delta_D: Tensor,
        residual_D: Tensor | None,
        context: Context,
        *,
        half_precision: bool = False,
        out: Tensor | None = None,
    ) -> tuple[Update, Tensor]:
        """Return what is sent of p = Δ + e, and what is left: p − u with u as the receiver reads it, shape (D,).

        Args:
            delta_D: Δ, shape (D,); not modified.
            residual_D: e, shape (D,); None: 0.
            context: as in :meth:`apply`.
            half_precision: whether values travel as float16.
            out: shape (D,), may take what is left.

        Raises:
            ValueError: as :meth:`compress` does.
        """
        parts = self.fused(delta_D, residual_D, context, out) if threshold_pass.is_fused(delta_D) else None
        if parts is None or not parts.finite:
            p_D = delta_D if residual_D is None else delta_D + residual_D
            update = self.compress_in(p_D, context)
            return update, as_sent(update, half_precision).left_of(p_D)
        update = self.coded(SparseUpdate(parts.values, parts.indices, parts.left_D.numel()), context)
        sent = as_sent(update, half_precision).values
        if sent is not parts.values:
            parts.left_D[parts.indices] = parts.values - sent.to(parts.values.dtype)
        return update, parts.left_D

    def fused(
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> threshold_pass.Parts | None:
        """Divide a long vector on the CPU in one pass, into the bits that :meth:`apply` and a difference give.

        Args:
            delta_D: Δ, shape (D,), float32.
            residual_D: e, shape (D,); None: 0.
            context: as in :meth:`apply`.
            out: shape (D,), may take what is left.

        Returns:
            None if there is no such pass for this compressor, as by default, or for this vector.
        """
        return None

    def coded(self, update: SparseUpdate, context: Context) -> Update:
        """Return what is sent of the entries that :meth:`fused` found. By default they are sent as they are."""
        return update

    def compress_in(self, p_D: Tensor, context: Context) -> Update:
        """Return what is sent of a vector in a context; see :meth:`compress`.

        Raises:
            ConfigurationError: :meth:`apply` returns no update, one of a vector of another length, or changes ``p_D``.
        """
        require_finite(p_D, context)
        changes = None if p_D.is_inference() else p_D._version
        update: object = self.apply(p_D, context)
        wrong = ""
        if not isinstance(update, Update):
            wrong = f"an Update (hetfl.updates) from {type(self).__name__}.apply but got {type(update).__name__}"
        elif update.size != p_D.numel():
            wrong = f"an update of {p_D.numel()} entries from {type(self).__name__}.apply but got one of {update.size}"
        elif changes is not None and p_D._version != changes:
            wrong = f"{type(self).__name__}.apply to leave its vector as it is but got it changed in place"
        if isinstance(update, Update) and not wrong:
            return update
        raise ConfigurationError(f"Expected {wrong}")

    @property
    def expands(self) -> bool:
        """Whether ‖C(p) − p‖ may exceed ‖p‖ by far, so that residuals would grow without end. By default not."""
        return False

    @property
    def planned_density(self) -> float | None:
        """The share of the entries that is to be sent in the mean; None: not known. By default ``self.density``."""
        return getattr(self, "density", None)

    @property
    def value_bits(self) -> int | None:
        """Bits of a value on the wire where values are codes; None by default: values are floats."""
        return None

    @property
    def needs_shapes(self) -> bool:
        """Whether tensors are looked at by rows or filters, which a masked vector does not have. By default not."""
        return False

    def shared_bytes(self, layout: Layout) -> int:
        """Return the bytes of server-shared state that a client must be sent to compress a vector. By default none."""
        return 0

    def needs_values(self, update: Update, layout: Layout | None) -> bool:
        """Return whether :meth:`observe` has to see the values of an update as they are, not quantised. By default not.

        Args:
            update: what :meth:`apply` returned.
            layout: of the vector.
        """
        return False

    def setup(self, facts: Facts) -> None:
        """Learn the facts of a federation before a checkpoint is loaded. By default nothing.

        Raises:
            ConfigurationError: the compressor does not go with them.
        """

    def extras(self) -> dict[str, Range]:
        """Return by name the ranges of further numbers that clients report for :meth:`observe`. By default none."""
        return {}

    def report(self, delta_D: Tensor) -> dict[str, float]:
        """Return what a client reports of its delta, shape (D,): exactly the :meth:`extras`. By default nothing."""
        return {}

    def begin_round(self, lr: float) -> None:
        """Learn the clients' learning rate of a round before its first vector. By default nothing."""

    def observe(self, update: Update, layout: Layout | None = None, report: Report | None = None) -> None:
        """Learn from an update that the server accepted. By default nothing.

        Args:
            update: what the server decoded.
            layout: of the vector.
            report: of the client, with :meth:`extras` and the length of its message; None: outside of a run.
        """

    def end_round(self) -> None:
        """Close the round after its last accepted update. By default nothing."""

    def columns(self) -> dict[str, float]:
        """Return columns of ``metrics.csv`` for the round that was closed. By default none."""
        return {}

    def threshold(self, lr: float) -> float | None:
        """Return the threshold λ in force at a learning rate; None if there is none, or none yet."""
        return None

    @property
    def title(self) -> str:
        """The name by which it is shown: by default that of its class."""
        return type(self).__name__

    def describe(self) -> str:
        """Return the compressor with its settings in short text, by which a checkpoint knows it again."""
        return described(type(self).__name__, self.settings())

    def __repr__(self) -> str:
        return self.describe()

    def settings(self) -> dict[str, object]:
        """Return the constructor's arguments by name: by default those that it keeps under their names."""
        return settings_of(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the server-shared state in plain types and tensors; settings of the constructor are not in it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""


Combine = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""Takes Δ and e of a client, each of shape (D,); returns two vectors whose sum is p, the second of them None for 0."""


def apart(delta_D: Tensor, residual_D: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return delta and residual as they are: nothing changes p = Δ + e before it is compressed."""
    return delta_D, residual_D


def require_finite(p_D: Tensor, context: Context) -> None:
    """Refuse a vector that cannot be compressed.

    Raises:
        ValueError: ``p_D`` is not a flat vector.
        RefusedUpdate: it holds NaN or Inf; the message names the client and the tensor.
    """
    sender = "a client" if context.client is None else f"client {context.client}"
    if p_D.dim() != 1:
        raise ValueError(f"Expected a flat vector from {sender} but got shape {tuple(p_D.shape)}")
    # A sum is not finite if an entry isn't, and takes less time than to look at each.
    if math.isfinite(p_D.sum()):
        return
    finite_D = torch.isfinite(p_D)
    if bool(finite_D.all()):
        return
    position = int(finite_D.logical_not().nonzero()[0])
    where = f"position {position}"
    if (layout := context.layout) is not None:
        tensor = bisect_right(layout.offsets, position) - 1
        where = f"position {position - layout.offsets[tensor]} of tensor {list(layout.shapes)[tensor]!r}"
    raise RefusedUpdate(f"Expected finite entries from {sender} but got {p_D[position].item()} at {where}")


def positions_of(mask_D: Tensor) -> Tensor:
    """Return where a mask, bool, shape (D,), is set: int64, ascending."""
    if mask_D.device.type != "cpu":
        return mask_D.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask_D.numpy()))  # several times faster than torch's
