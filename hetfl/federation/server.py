"""The server's side of a round: it receives replies, adds up updates, and steps the global models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from hetfl import wire
from hetfl.accounting import Downloads, Ledger
from hetfl.aggregators.per_model import Aggregators
from hetfl.aggregators.server_step import server_step
from hetfl.compression import ErrorFeedback
from hetfl.defence.ranges import ENTRY
from hetfl.errors import ConfigurationError, RefusedUpdate, UnusualUpdate
from hetfl.federation.probing import RoundProbe
from hetfl.federation.task_parts import TaskParts
from hetfl.finite import require_finite
from hetfl.fleet import Work
from hetfl.hooks import Hooks
from hetfl.schedule import FRESH, Accepted, Age, Flight, Reply
from hetfl.types import Report, Task
from hetfl.updates import DenseUpdate, SparseUpdate, Update


class Server:
    """Decodes and checks updates, adds them up, and takes the server's step; it sees only decoded payloads.

    Args:
        task_parts: what clients hold, send and compress of the global models.
        uplink: the clients' uplink; its compressor may have state that clients download.
        aggregators: combine updates.
        hooks: may change the updates that are added up, and the step.
        ledger: counts costs.
        downloads: records what clients have downloaded.
    """

    def __init__(
        self,
        task_parts: TaskParts,
        uplink: ErrorFeedback,
        aggregators: Aggregators,
        hooks: Hooks,
        ledger: Ledger,
        downloads: Downloads,
    ) -> None:
        self.task_parts, self.models, self.uplink = task_parts, task_parts.models, uplink
        self.aggregators, self.hooks, self.ledger, self.downloads = aggregators, hooks, ledger, downloads

    def reset(self) -> None:
        """Begin a new sum of updates."""
        self.aggregators.reset(self.models.tensors, self.models.shared)
        self._accepted, self._reason, self._unusual = False, "", 0

    def receive(self, flight: Flight, age: Age = FRESH) -> Accepted | None:
        """Add a client's update to the sums if it is valid and in time, and charge its costs.

        Args:
            flight: the client's work, with its reply.
            age: of the model that the client took.

        Returns:
            The accepted update; None if it was lost, refused or late. Its delta is then lost, and the client's
            residual does not change.
        """
        task, reply, work = flight.task, flight.reply, flight.work
        if reply is None:
            self.ledger.lose(task.client, task.round, work)
            return None
        if reply.report is None:
            sender = self.ledger.called(task.client)
            rank_zero_warn(f"Round {task.round + 1}: no update of client {sender}: {reply.lost}")
            self.ledger.lose(task.client, task.round, work, reply.late)
            return None
        try:
            update = self._decoded(reply)
            peak = _peak(update)
        except (wire.MalformedPayload, RefusedUpdate) as error:
            self._refuse(task, error, replace(work, up_bytes=0))
            return None
        if not self.ledger.in_time(task.client, task.round, work):
            self.ledger.lose(task.client, task.round, work)
            return None
        report = age.of(self._completed(reply.report, flight))
        try:
            hooked = self.hooks.on_update(update, task.sent, report)
            self.aggregators.update(age.applied(hooked), task.sent, report)
        except RefusedUpdate as error:
            self._refuse(task, error, work)
            return None
        self._accepted = True
        self.ledger.charge(task.client, task.round, work)
        self.ledger.sent(
            entries=self.task_parts.compressed(task).size,
            sent=update.num_sent,
            update_bytes=report.up_bytes,
            dense_bytes=4 * task.sent.size,
        )
        return Accepted(report, update, task.sent, peak)

    def _completed(self, report: Report, flight: Flight) -> Report:
        """Return a client's report with what the server knows about it."""
        return replace(
            report,
            flops=float(flight.work.flops),
            seconds=self.ledger.seconds(flight.task.client, flight.task.round, flight.work),
            up_bytes=int(flight.work.up_bytes),
            initial_loss=flight.initial_loss,
            weight=flight.weight,
        )

    def _refuse(self, task: Task, error: Exception, work: Work) -> None:
        sender = f"client {self.ledger.called(task.client)} at level {task.level}"
        rank_zero_warn(f"Round {task.round + 1}: update of {sender} refused: {error}")
        self.ledger.charge(task.client, task.round, work)
        self.ledger.refuse()
        self._reason, self._unusual = str(error), self._unusual + isinstance(error, UnusualUpdate)

    def costs(self) -> dict[str, float]:
        """Return the columns of the round's costs, and of the norm of all residuals."""
        return {**self.ledger.costs(), "residual/norm": self.uplink.norm()}

    def down_bytes(self, task: Task, probe: RoundProbe) -> int:
        """Return the bytes that a client downloads before it trains; a probed client already has the model."""
        model = 0 if probe.has_model(task) else self.downloads.bytes(task)
        beside = self.aggregators.shared_bytes(task.client, task.model)
        return model + beside + self.uplink.compressor.shared_bytes(self.task_parts.compressed(task).held)

    def note_downloads(self, tasks: Sequence[Task], probe: RoundProbe) -> None:
        """Record the downloads of tasks that were complete by the deadline, by their sizes before any is recorded."""
        asks, timed = self.aggregators.first.asks_losses, self.ledger.deadline is not None
        known = [task for task in tasks if not asks or probe.initial_loss(task) is not None]
        for task, size in [(task, self.down_bytes(task, probe) if timed else 0) for task in known]:
            if self.ledger.downloads(task.client, task.round, size):
                self.downloads.note(task)

    def step(self, optimizer: Optimizer, step: Callable[[], object], round: int, known: bool) -> dict[str, Tensor]:
        """Take the server's step, and return the holders of each entry; without an update the models do not change.

        Args:
            optimizer: the server's.
            step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
            round: the round.
            known: whether a refused update is a sign of diverged training, and not of a hostile sender.

        Raises:
            ConfigurationError: updates arrived, all were refused, not only as unusual, and ``known`` is true; or an
                aggregator, a hook or the optimizer returned NaN or Inf.
        """
        refused = self.ledger.round.refused
        if not self._accepted and refused > self._unusual and known:
            last = self._reason and f" (the last one: {self._reason})"
            raise ConfigurationError(
                f"Expected an update that can be used in round {round + 1} but all {refused} were refused{last}: if "
                "training diverged, try a smaller learning rate or gradient_clip, or a larger bound of the hooks"
            )
        if not self._accepted:
            rank_zero_warn("No update of a round arrived: all were late, failed or refused; models stay as they are")
            step()  # no parameter has a gradient, so none moves; Lightning counts the step
            return {}
        tensors, steps, holders = self.aggregators.compute(self.hooks.on_step)
        server_step(optimizer, step, tensors, steps, holders)
        require_finite(tensors, f"models from the server's optimizer {type(optimizer).__name__} in round {round + 1}")
        return holders

    def _decoded(self, reply: Reply) -> Update:
        """Return the decoded update of a reply.

        Raises:
            MalformedPayload: the payload is not a valid update for the reply's task.
            RefusedUpdate: the client could not make an update.
        """
        if reply.refusal:
            raise RefusedUpdate(reply.refusal)
        task, layout = reply.task, self.task_parts.compressed(reply.task).held
        exact = task.sent.size - layout.size
        dtype = self.models.like.dtype
        expected = wire.Expected(task.round, task.owner, layout.size, exact, dtype=dtype, layout=layout)
        return wire.decode(reply.payload, expected)


def _peak(update: Update) -> float:
    """Return the largest absolute value in an update.

    Raises:
        RefusedUpdate: the value is out of the range of an entry.
    """
    values = update.values if isinstance(update, DenseUpdate | SparseUpdate) else update.to_dense()
    # torch's maximum norm takes many times as long.
    peaks = [torch.stack(torch.aminmax(part)).abs().max() for part in (values, update.exact) if part.numel()]
    peak = max(map(float, peaks), default=0.0)
    if peak not in ENTRY:
        raise RefusedUpdate(f"Expected {ENTRY} but got {peak:g}")
    return peak
