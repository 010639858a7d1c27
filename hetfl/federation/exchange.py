"""One client's update at the server: from the wire to the aggregator, and into the books."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn

from hetfl import wire
from hetfl.compression import ErrorFeedback
from hetfl.errors import RefusedUpdate
from hetfl.federation.aggregating import ClusterAggregators
from hetfl.federation.clients import Upload
from hetfl.federation.ledger import Ledger
from hetfl.federation.ranges import ENTRY
from hetfl.fleet import Work
from hetfl.local import LocalTask
from hetfl.submodel import index_layout
from hetfl.types import Index, Layout, Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update


@dataclass(frozen=True)
class Accepted:
    """A client's update that the server took.

    Attributes:
        report: what the client says about its training.
        update: what the server decoded.
        index: where the update's entries lie in the global model: the upload index, parameters and then float buffers.
        peak: the largest absolute value in the update.
    """

    report: Report
    update: Update
    index: Index
    peak: float = 0.0


class Exchange:
    """What lies between a client's message and the server's step; the aggregator sees only what was decoded.

    Args:
        uplink: the compressor with its error feedback.
        aggregators: take accepted updates.
        ledger: takes their costs.

    Attributes:
        max_norm: largest 2-norm of an update, what travels exactly included; None: any.
    """

    max_norm: float | None = None

    def __init__(self, uplink: ErrorFeedback, aggregators: ClusterAggregators, ledger: Ledger) -> None:
        self.uplink, self.aggregators, self.ledger = uplink, aggregators, ledger

    def receive(
        self,
        upload: Upload,
        *,
        index: Index,
        sent: Index,
        held: Index,
        flops: float,
        dtype: torch.dtype,
        initial_loss: float | None = None,
        informed: bool = False,
        weight: float = 1.0,
    ) -> Accepted | None:
        """Pass one client's update on, if it arrives in time.

        Args:
            upload: what the client sent.
            index: what it trained.
            sent: what it sends and is a holder of: a part of ``index``.
            held: of that, the entries that are compressed; the others are buffers and travel exactly.
            flops: what its training took.
            dtype: of the global model.
            initial_loss: of the model that it was sent, if it was asked for.
            informed: whether the client had that model before its training was asked for.
            weight: what the selection lets it count.

        Returns:
            What was accepted; None if the update was refused or late: then its delta is lost, its residual as it was.
        """
        task, layout, entries = upload.task, index_layout(held), index_layout(sent).size
        down_bytes = self.down_bytes(index_layout(index).size, layout, informed)
        try:
            update = _decoded(upload, layout, entries, dtype)
            peak = _peak(update)
            self._check_norm(update)
        except (wire.MalformedPayload, RefusedUpdate) as error:
            self._refuse(task, error, Work(down_bytes, flops))
            return None
        work = Work(down_bytes, flops, len(upload.payload))
        if not self.ledger.in_time(task.client, task.round, work):
            self.ledger.lose(task.client, task.round, work)
            return None
        said = (upload.num_samples, upload.loss, flops, task.lr, initial_loss, weight, task.cluster)
        report = Report(task.client, task.level, *said)
        try:
            self.aggregators.update(update, sent, report)
        except RefusedUpdate as error:
            self._refuse(task, error, work)
            return None
        self.uplink.observe(update, held)
        self.ledger.charge(task.client, task.round, work)
        self.ledger.sent(
            entries=layout.size, sent=update.num_sent, update_bytes=len(upload.payload), dense_bytes=4 * entries
        )
        return Accepted(report, update, sent, peak)

    def _refuse(self, task: LocalTask, error: Exception, work: Work) -> None:
        rank_zero_warn(f"Round {task.round}: update of client {task.client} at level {task.level} refused: {error}")
        self.ledger.charge(task.client, task.round, work)
        self.ledger.refuse()

    def _check_norm(self, update: Update) -> None:
        if self.max_norm is None:
            return
        norm = float(torch.cat([update.to_dense().double(), update.exact.double()]).norm())
        if norm > self.max_norm:
            raise RefusedUpdate(f"Expected a norm of at most {self.max_norm:g} but got {norm:g}")

    def down_bytes(self, entries: int, layout: Layout, informed: bool) -> int:
        """Return the bytes that a client is sent before it trains.

        Args:
            entries: of its sub-model.
            layout: of what it will compress.
            informed: whether it has the model already.
        """
        return (0 if informed else wire.dense_size(entries)) + self.uplink.compressor.shared_bytes(layout)


def _peak(update: Update) -> float:
    """Return the largest absolute value in an update.

    Raises:
        RefusedUpdate: it is out of the range of an entry.
    """
    values = update.values if isinstance(update, DenseUpdate | SparseUpdate) else update.to_dense()
    parts = [part for part in (values, update.exact) if part.numel()]
    peak = max((float(torch.linalg.vector_norm(part, torch.inf)) for part in parts), default=0.0)
    if peak not in ENTRY:
        raise RefusedUpdate(f"Expected {ENTRY} but got {peak:g}")
    return peak


def _decoded(upload: Upload, layout: Layout, entries: int, dtype: torch.dtype) -> Update:
    """Return what the server reads in an upload.

    Args:
        upload: what a client sent.
        layout: of the vector that it compressed.
        entries: that it was to send, those that travel exactly included.
        dtype: of the global model.

    Raises:
        MalformedPayload: it is not what was asked for.
        RefusedUpdate: the client could not make an update.
    """
    if upload.refusal:
        raise RefusedUpdate(upload.refusal)
    task, size = upload.task, layout.size
    expected = wire.Expected(task.round, task.client, size, entries - size, dtype=dtype, layout=layout)
    return wire.decode(upload.payload, expected)
