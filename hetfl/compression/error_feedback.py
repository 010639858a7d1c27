"""The one door through which every delta leaves a client: what a compressor leaves out is sent later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.arguments import checked
from hetfl.compression import threshold_pass
from hetfl.compression.base import Combine, Compressor, Context, apart
from hetfl.compression.message import Message
from hetfl.compression.staleness import Keep, Staleness
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.part import only, part_of
from hetfl.piece import Facts, Piece
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import Range, Report
from hetfl.updates import Update
from hetfl.wire import encode


@checked
class ErrorFeedback(Piece):
    """Add to each delta what was left out before, compress the sum, and keep what is left out now.

    With e_k the residual of client k in global coordinates and I the part that it sends:

        p = Δ_k + f(a) e_k[I],   u = decode(encode(C(p))),   e_k[I] ← p − u   once the server has accepted,

    where a is the number of rounds since the server last took an update of the client, and f is 1 unless ``staleness``
    says otherwise.

    Entries of e_k outside I are not sent; they are multiplied by f(a), too, so that old residuals stay old. A message
    that was never accepted changes nothing: the client loses its delta and keeps its residual. Rounding on the wire is
    in the residual, as u is what the server decodes. Sparsifiers satisfy u + e' = fl(Δ + e) bit for bit, so over a run
    Σ u + e = Σ Δ up to the rounding of Δ + e, while f is 1; others do within the rounding of the difference.

    Error feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019, arXiv 1901.09847. In global
    coordinates, for sub-models that change: ours.

    Residuals are in units of the delta (they contain the learning rate of their round) and live on the CPU; vectors may
    be on any device. A client has at most one message under way.

    Args:
        compressor: C.
        residuals: where e_k is kept; None: in memory.
        half_precision: send values as float16.
        enabled: False sends C(Δ) and keeps nothing.
        staleness: what becomes of the residual of a client that stays away; None: it is kept.

    Raises:
        ConfigurationError: error feedback with a compressor that expands: residuals would grow without end.
    """

    files: ClassVar[str] = "residuals"

    def __init__(
        self,
        compressor: Compressor,
        residuals: ClientStore | None = None,
        half_precision: bool = False,
        enabled: bool = True,
        staleness: Staleness | None = None,
    ) -> None:
        if enabled and compressor.expands:
            raise ConfigurationError(
                f"Expected enabled: false with a compressor that expands but got error feedback with {compressor}"
            )
        self.compressor = compressor
        self.residuals = MemoryStore() if residuals is None else residuals
        self.half_precision = half_precision
        self.enabled = enabled
        self.staleness = staleness or Keep()
        self._squared_norms: dict[int, float] = {}
        self._spare: Tensor | None = None  # what a residual was left in that has been stored since
        self._rounds: dict[int, int] = {}  # in which the server last took an update of the client
        self._compressed: frozenset[str] | None = None  # names of the tensors that are compressed; None: all
        self._mean_samples = 0.0  # of all clients
        self._lr, self._round = 0.0, -1
        self._threshold: float | None = None
        self._sent: dict[str, tuple[int, int]] = {}  # in the round, by level: values sent, and entries of the vectors

    def setup(self, facts: Facts) -> None:  # noqa: D102
        if facts.masks and self.compressor.needs_shapes:
            raise ConfigurationError(
                "Expected parts without masks for a compressor that looks at rows or filters but got "
                f"{type(self.compressor).__name__} with masks"
            )
        self._compressed = frozenset(facts.parameters)
        self._mean_samples = sum(facts.sizes) / max(1, facts.num_clients)
        self.compressor.setup(facts)

    def extras(self) -> dict[str, Range]:  # noqa: D102
        return self.compressor.extras()

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.residuals.bind(folder)

    def prepare(
        self,
        client: int,
        delta_D: Tensor,
        *,
        index: Index,
        round: int,
        lr: float,
        exact: Tensor | None = None,
        generator: torch.Generator | None = None,
        uplink: float | None = None,
        samples: int | None = None,
        combine: Combine = apart,
        start: Callable[[], Tensor] | None = None,
    ) -> Message:
        """Return the message for a delta; no client's state changes.

        Args:
            client: the client's id.
            delta_D: Δ_k, shape (D,), in the coordinates of ``index``; not modified.
            index: the part I that the client sends.
            round: the round's number.
            lr: the clients' learning rate γ_t.
            exact: entries that travel beside the vector, uncompressed.
            generator: source of randomness for a compressor that draws.
            uplink: bytes per second from the client, for a compressor that goes by it.
            samples: the client's number of training samples; None: as many as the mean client.
            combine: may change p = Δ + e before it is compressed; what is left is of the changed one.
            start: returns the values that the client began with, shape (D,), for a compressor that goes by them.

        Raises:
            ValueError: ``delta_D`` has another length than ``index``, or Δ + e holds NaN or Inf or overflows float16.
        """
        layout, shape = part_of(index).held, tuple(delta_D.shape)
        if shape != (layout.size,):
            raise ValueError(f"Expected a delta of shape ({layout.size},) from client {client} but got {shape}")
        itemsize = 2 if self.half_precision else None
        relative = samples / self._mean_samples if samples and self._mean_samples else 1.0
        reported = self.compressor.report(delta_D)
        context = Context(lr, layout, client, generator, uplink, itemsize, reported, relative, start)
        left_D = buffer = None
        if self.enabled:
            buffer = self._buffer(delta_D)
            update, left_D = self.compressor.split(
                *combine(delta_D, self._residual(client, index, delta_D, round)),
                context,
                half_precision=self.half_precision,
                out=None if buffer is None else buffer[: layout.size],
            )
        else:
            update = self.compressor.compress_in(combine(delta_D, None)[0], context)
        if exact is not None and exact.numel():
            update = update.with_exact(exact)
        payload = encode(update, round=round, client=client, half_precision=self.half_precision)
        return Message(client, round, index, payload, left_D, buffer, reported)

    def _buffer(self, delta_D: Tensor) -> Tensor | None:
        """Return memory for what a fused pass leaves of a delta; None if there is no such pass."""
        if not threshold_pass.is_fused(delta_D):
            return None
        (spare, self._spare), size = (self._spare, None), delta_D.numel()
        return spare if spare is not None and spare.numel() >= size else threshold_pass.new_buffer(size)

    def _residual(self, client: int, index: Index, like_D: Tensor, round: int) -> Tensor | None:
        """Return what is added to the delta: the client's residual, or what its age leaves of it; None for nothing."""
        factor = self._factor(client, round)
        residual_D = self.residuals.read(client, index, like_D) if factor else None
        return residual_D if residual_D is None or factor == 1 else residual_D * factor

    def _factor(self, client: int, round: int) -> float:
        """Return f(a)."""
        return self.staleness.factor(max(1, round - self._rounds.get(client, round)))

    def lend(self, client: int, index: Index, like: Tensor) -> tuple[Tensor | None, int | None]:
        """Return what another process needs to prepare a message: e_k[I], and the round of the client's last update.

        Args:
            client: the client's id.
            index: the part I that it sends.
            like: dtype and device.
        """
        return (self.residuals.read(client, index, like) if self.enabled else None), self._rounds.get(client)

    def borrow(self, client: int, index: Index, residual_D: Tensor | None, last: int | None) -> None:
        """Take what :meth:`lend` returned in another process; there is nothing to give back but the message."""
        self._rounds.pop(client, None)
        if last is not None:
            self._rounds[client] = last
        if residual_D is not None:
            self.residuals.write(client, index, residual_D, -1 if last is None else last)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._lr, self._round, self._sent = lr, round, {}
        self.compressor.begin_round(lr)

    def accept(self, message: Message, update: Update) -> None:
        """Do both parts of what follows once the server took a message: the compressor learns, and :meth:`keep`.

        Args:
            message: what :meth:`prepare` returned.
            update: what the server decoded.
        """
        self.compressor.observe(update, part_of(message.index).held)
        self.keep(message)

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Let the compressor learn from an update that the server took: the server's part."""
        held = index if self._compressed is None else only(index, self._compressed)
        self.compressor.observe(update, part_of(held).held, report)
        sent, entries = self._sent.get(report.level, (0, 0))
        self._sent[report.level] = sent + update.num_sent, entries + update.size

    def keep(self, message: Message) -> None:
        """Make the prepared residual the client's, as the server took the message: the client's part."""
        if message.residual_D is None:
            return
        outside = self._factor(message.client, message.round)
        self._rounds[message.client] = max(message.round, self._round)  # the client may have begun rounds ago
        new_D, where = message.residual_D, message.index
        written = self.residuals.write(message.client, where, new_D, message.round, outside=outside)
        if message.buffer is not None:
            self._spare = message.buffer
        self._squared_norms.pop(message.client, None)
        if written:
            self._squared_norms[message.client] = written.squared_norm()

    def note(self, client: int, round: int, squared_norm: float) -> None:
        """Note an accepted update of a client that keeps its residual itself, in place of :meth:`keep`.

        Args:
            client: of which the server took an update.
            round: in which the client took the model; it is the present one, or earlier.
            squared_norm: ‖e_k‖², as the client reports it.
        """
        self._rounds[client] = max(round, self._round)
        self._squared_norms.pop(client, None)
        if squared_norm:
            self._squared_norms[client] = squared_norm

    def restore(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Put a client's residual back, as of the round in which the server last took an update; -1: it never did."""
        self._rounds.pop(client, None)
        self._squared_norms.pop(client, None)
        self.residuals.save(client, blocks, round)
        if round >= 0:
            self._rounds[client] = round

    def squared_norm(self, client: int) -> float:
        """Return ‖e_k‖²."""
        return self._squared_norms.get(client, 0.0)

    def end_round(self, round: int) -> None:  # noqa: D102
        self._threshold = self.compressor.threshold(self._lr)
        self.compressor.end_round()

    def columns(self) -> dict[str, float]:
        """Return the threshold that was in force in the round, if there is one, and the compressor's columns.

        With them comes the density of the round's updates by level.
        """
        columns = {} if self._threshold is None else {"threshold": self._threshold}
        if of_compressor := self.compressor.columns():
            levels = {level: sent / max(1, entries) for level, (sent, entries) in sorted(self._sent.items())}
            columns |= of_compressor | {f"budget/density_by_level/{level}": share for level, share in levels.items()}
        return columns

    def norm(self) -> float:
        """Return the norm of all residuals together, sqrt(Σ_k ‖e_k‖²), whatever the order of the clients.

        It is infinite if the sum is beyond float64, as that of a float64 model that diverges may be.
        """
        try:
            return math.sqrt(math.fsum(self._squared_norms.values()))
        except OverflowError:
            return math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return residuals, norms and the compressor's state in plain types and tensors."""
        return {
            "compressor": self.compressor.state_dict(),
            "residuals": self.residuals.state_dict(),
            "rounds": torch.tensor(list(self._rounds.items()), dtype=torch.int64).reshape(-1, 2),
            "clients": torch.tensor(list(self._squared_norms), dtype=torch.int64),
            "squared_norms": torch.tensor(list(self._squared_norms.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.compressor.load_state_dict(state["compressor"])
        self.residuals.load_state_dict(state["residuals"])
        self._rounds = dict(state["rounds"].tolist())
        self._squared_norms = dict(zip(state["clients"].tolist(), state["squared_norms"].tolist(), strict=True))

    def checkpointed(self) -> None:  # noqa: D102
        self.residuals.checkpointed()
