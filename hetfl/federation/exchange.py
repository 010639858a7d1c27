"""One client's update on its way: through the uplink and the wire, to the aggregator, into the books."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl import wire
from hetfl.compression import ErrorFeedback, Message
from hetfl.errors import RefusedUpdate
from hetfl.federation.aggregating import ClusterAggregators
from hetfl.federation.ledger import Ledger
from hetfl.fleet import Work
from hetfl.local import LocalResult, LocalTask
from hetfl.seeding import generator
from hetfl.submodel import gather_flat, index_layout, relative
from hetfl.types import Index, Layout, Report
from hetfl.updates import Update


@dataclass(frozen=True)
class Accepted:
    """A client's update that the server took.

    Attributes:
        report: what the client says about its training.
        update: what the server decoded.
        index: where the update's entries lie in the global model: the upload index, parameters and then float buffers.
    """

    report: Report
    update: Update
    index: Index


class Exchange:
    """What lies between local training and the server's step; the aggregator sees only what was decoded.

    Args:
        uplink: the compressor with its error feedback.
        aggregators: take accepted updates.
        ledger: takes their costs.
        seed: of what compressors draw.
    """

    def __init__(self, uplink: ErrorFeedback, aggregators: ClusterAggregators, ledger: Ledger, seed: int) -> None:
        self.uplink, self.aggregators, self.ledger, self.seed = uplink, aggregators, ledger, seed

    def receive(
        self,
        result: LocalResult,
        *,
        index: Index,
        upload: Index,
        trained: frozenset[str],
        flops: float,
        initial_loss: float | None = None,
        informed: bool = False,
        weight: float = 1.0,
    ) -> Accepted | None:
        """Pass one client's delta on, if it arrives in time.

        Args:
            result: the client's delta in the coordinates of ``index``.
            index: what the client trained.
            upload: what it sends and is a holder of: a part of ``index``.
            trained: names of parameters; other names of ``upload`` are buffers and travel exactly.
            flops: what its training took.
            initial_loss: of the model that it was sent, if it was asked for.
            informed: whether the client had that model before its training was asked for.
            weight: what the selection lets it count.

        Returns:
            What was accepted; None if the update was refused or late: then its delta is lost, its residual as it was.
        """
        task = result.task
        vector = _restricted(result.vector, index, upload)
        held = {name: entry for name, entry in upload.items() if name in trained}
        layout = index_layout(held)
        down_bytes = self.down_bytes(result.vector.numel(), layout, informed)
        try:
            message, update = self._delivered(task, vector, held, layout)
        except (wire.MalformedPayload, RefusedUpdate) as error:
            rank_zero_warn(f"Round {task.round}: update of client {task.client} at level {task.level} refused: {error}")
            self.ledger.charge(task.client, task.round, Work(down_bytes, flops))
            self.ledger.refuse()
            return None
        work = Work(down_bytes, flops, len(message.payload))
        if not self.ledger.in_time(task.client, task.round, work):
            self.ledger.lose(task.client, task.round, work)
            return None
        said = (result.num_samples, result.loss, flops, task.lr, initial_loss, weight, task.cluster)
        report = Report(task.client, task.level, *said)
        self.aggregators.update(update, upload, report)
        self.uplink.accept(message, update)
        self.ledger.charge(task.client, task.round, work)
        self.ledger.sent(
            entries=layout.size,
            sent=update.num_sent,
            update_bytes=len(message.payload),
            dense_bytes=4 * vector.numel(),
        )
        return Accepted(report, update, upload)

    def down_bytes(self, entries: int, layout: Layout, informed: bool) -> int:
        """Return the bytes that a client is sent before it trains.

        Args:
            entries: of its sub-model.
            layout: of what it will compress.
            informed: whether it has the model already.
        """
        return (0 if informed else wire.dense_size(entries)) + self.uplink.compressor.shared_bytes(layout)

    def _delivered(self, task: LocalTask, vector: Tensor, held: Index, layout: Layout) -> tuple[Message, Update]:
        """Return the message that a client sends, and what the server reads in it."""
        size = layout.size
        message = self.uplink.prepare(
            task.client,
            vector[:size],
            exact=vector[size:],
            index=held,
            round=task.round,
            lr=task.lr,
            generator=generator(self.seed, "compression", task.round, task.client),
            uplink=float(self.ledger.fleet.devices.uplink[task.client]),
        )
        expected = wire.Expected(
            task.round, task.client, size, vector.numel() - size, dtype=vector.dtype, layout=layout
        )
        return message, wire.decode(message.payload, expected)


def _restricted(vector_D: Tensor, index: Index, upload: Index) -> Tensor:
    if upload is index:
        return vector_D
    inside = {name: relative(entry, index[name]) for name, entry in upload.items()}
    return gather_flat(index_layout(index).views(vector_D), inside)
