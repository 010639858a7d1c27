"""The server's side of a round: it takes replies, adds up updates, and steps the global models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from hetfl import wire
from hetfl.accounting import Downloads, Ledger
from hetfl.aggregators.per_model import Aggregators
from hetfl.aggregators.server_step import server_step
from hetfl.compression import ErrorFeedback
from hetfl.defence.ranges import ENTRY
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.federation.clients import Reply
from hetfl.federation.probing import RoundProbe
from hetfl.federation.task_parts import TaskParts
from hetfl.fleet import Work
from hetfl.hooks import Hooks
from hetfl.part import Part
from hetfl.types import Report, Task
from hetfl.updates import DenseUpdate, SparseUpdate, Update


@dataclass(frozen=True)
class Accepted:
    """A client's update that the server took.

    Attributes:
        report: what is known of the client's training.
        update: what the server decoded.
        index: where the update's entries lie in the global model: what was sent, parameters and then float buffers.
        peak: the largest absolute value in the update.
    """

    report: Report
    update: Update
    index: Part
    peak: float = 0.0


class Server:
    """Decodes and checks updates, adds them up, and takes the server's step; it sees only what was decoded.

    Args:
        parts: where vectors lie in the global models.
        uplink: its compressor may share a state with clients.
        aggregators: combine updates.
        hooks: may change what is added up, and the step.
        ledger: takes costs.
        downloads: knows what clients have.
    """

    def __init__(
        self,
        parts: TaskParts,
        uplink: ErrorFeedback,
        aggregators: Aggregators,
        hooks: Hooks,
        ledger: Ledger,
        downloads: Downloads,
    ) -> None:
        self.parts, self.models, self.uplink = parts, parts.models, uplink
        self.aggregators, self.hooks, self.ledger, self.downloads = aggregators, hooks, ledger, downloads

    def reset(self) -> None:
        """Begin to add up updates."""
        self.aggregators.reset(self.models.tensors, self.models.shared)
        self._accepted = 0

    def receive(self, reply: Reply, probe: RoundProbe, weight: float) -> Accepted | None:
        """Take a client's update, if it can be used and arrives in time, and charge what it cost.

        Args:
            reply: what came of the client.
            probe: who was asked what before.
            weight: what the selection lets the client count.

        Returns:
            None if the update was lost, refused or late: its delta is lost then, its residual stays as it was.
        """
        task, down_bytes = reply.task, self.down_bytes(reply.task, probe)
        if reply.report is None:
            rank_zero_warn(f"Round {task.round}: no update of client {self.ledger.called(task.client)}: {reply.lost}")
            self.ledger.lose(task.client, task.round, Work(down_bytes, 0.0))
            return None
        passes, up_bytes = reply.report.passes, len(reply.payload)
        work = self.models.levels.work(task, down_bytes, passes, up_bytes, training=True)
        try:
            update = self._decoded(reply)
            peak = _peak(update)
        except (wire.MalformedPayload, RefusedUpdate) as error:
            self._refuse(task, error, replace(work, up_bytes=0))
            return None
        if not self.ledger.in_time(task.client, task.round, work):
            self.ledger.lose(task.client, task.round, work)
            return None
        seconds, loss = self.ledger.seconds(task.client, task.round, work), probe.initial_loss(task)
        report = replace(reply.report, flops=float(work.flops), initial_loss=loss, weight=weight, seconds=seconds)
        try:
            self.aggregators.update(self.hooks.on_update(update, task.sent, report), task.sent, report)
        except RefusedUpdate as error:
            self._refuse(task, error, work)
            return None
        self._accepted += 1
        self.ledger.charge(task.client, task.round, work)
        self.ledger.sent(
            entries=self.parts.held(task).size,
            sent=update.num_sent,
            update_bytes=up_bytes,
            dense_bytes=4 * task.sent.size,
        )
        return Accepted(report, update, task.sent, peak)

    def _refuse(self, task: Task, error: Exception, work: Work) -> None:
        who = f"client {self.ledger.called(task.client)} at level {task.level}"
        rank_zero_warn(f"Round {task.round}: update of {who} refused: {error}")
        self.ledger.charge(task.client, task.round, work)
        self.ledger.refuse()

    def down_bytes(self, task: Task, probe: RoundProbe) -> int:
        """Return the bytes that a client is sent before it trains; a client that was probed has the model already."""
        model = 0 if probe.has_model(task) else self.downloads.bytes(task)
        return model + self.uplink.compressor.shared_bytes(self.parts.held(task).held)

    def step(self, optimizer: Optimizer, step: Callable[[], object], round: int, known: bool) -> None:
        """Take the server's step; a round whose updates were all lost on the way moves nothing.

        Args:
            optimizer: the server's.
            step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
            round: the round.
            known: whether refused updates tell of training, and not of their senders.

        Raises:
            ConfigurationError: updates arrived, and all of them were refused.
        """
        refused = self.ledger.round.refused
        if not self._accepted and refused and known:
            raise ConfigurationError(
                f"Expected an update that can be used in round {round} but all {refused} were refused (training "
                "diverged?): try a smaller learning rate or gradient_clip, or a larger bound where hooks have one"
            )
        if not self._accepted:
            rank_zero_warn("No update of a round arrived: all were late or failed, and the models stay as they are")
            step()  # no parameter has a gradient, so none moves; Lightning counts the round, and keeps it
            return
        server_step(optimizer, step, *self.aggregators.compute(self.hooks.on_step))

    def _decoded(self, reply: Reply) -> Update:
        """Return what the server reads in a reply.

        Raises:
            MalformedPayload: it is not what was asked for.
            RefusedUpdate: the client could not make an update.
        """
        if reply.refusal:
            raise RefusedUpdate(reply.refusal)
        task, layout = reply.task, self.parts.held(reply.task).held
        exact = task.sent.size - layout.size
        dtype = self.models.like.dtype
        expected = wire.Expected(task.round, task.owner, layout.size, exact, dtype=dtype, layout=layout)
        return wire.decode(reply.payload, expected)


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
