"""The clients' side of a round: how a client sends its delta, and where clients run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from hetfl.compression import ErrorFeedback
from hetfl.entries import Entries
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.federation.task_parts import TaskParts
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import IntArray
from hetfl.hooks import Hooks
from hetfl.local import Executor, Penalty, Personal, Result
from hetfl.local.executor import Job
from hetfl.local.jobs import statistics, train
from hetfl.part import Part, only
from hetfl.piece import Piece
from hetfl.schedule import Reply
from hetfl.seeding import generator
from hetfl.types import Task
from hetfl.updates import Update


@dataclass(frozen=True)
class ClientSide:
    """The work of a client beside its training: residual, compression, encoding, and the penalty's memory.

    Attributes:
        seed: of every random choice.
        task_parts: what clients hold, send and compress of the global models.
        uplink: the compressor and the residuals.
        penalty: of the local objective.
        fleet: the clients' devices.
        personal: the clients' personal tensors.
        hooks: may change the vector that is compressed.
    """

    seed: int
    task_parts: TaskParts
    uplink: ErrorFeedback
    penalty: Penalty
    fleet: Fleet
    personal: Personal
    hooks: Hooks

    def recall(self, task: Task) -> Task:
        """Return a task with the penalty's memory of its client's trained parameters, and its personal tensors."""
        models = self.task_parts.models
        memory_D = self.penalty.memory(task.owner, only(task.part.dense, models.trained), models.like)
        first_D, task = self.task_parts.first_values(task), self.with_personal(task)
        return task if memory_D is None and first_D is None else replace(task, memory_D=memory_D, first_D=first_D)

    def with_personal(self, task: Task) -> Task:
        """Return a task with its client's personal tensors."""
        return self.personal.added_to(task, self.task_parts.kept(task), self.task_parts.models.like)

    def send(self, result: Result, start: Callable[[Task], Tensor]) -> Reply:
        """Return a client's reply: its delta plus residual, compressed and encoded. Its state does not change yet.

        Args:
            result: of its training.
            start: returns the values that a task's client began with, without personal tensors, in the order of its
                part's index; it is called only if the compressor asks for them.
        """
        task, sent, held = result.task, result.task.sent, self.task_parts.compressed(result.task)
        size = held.size
        moving = self.task_parts.models.levels.moving(task.part)
        vector_D = _restricted(result.vector, moving, sent)
        try:
            message = self.uplink.prepare(
                task.owner,
                vector_D[:size],
                exact=vector_D[size:],
                index=held,
                round=task.round,
                lr=task.lr,
                generator=generator(self.seed, "compression", task.round, task.client),
                uplink=float(self.fleet.rates(task.client, task.round)[2]),
                samples=result.report.samples,
                combine=self.hooks.combine(task, held, self.seed),
                start=lambda: _restricted(start(task), moving, sent)[:size],
            )
        except RefusedUpdate as error:
            return Reply(task, result.report, refusal=str(error))
        personal = _restricted(result.vector, moving, kept) if (kept := self.task_parts.kept(task)) else None
        report = result.report
        if message.extras:
            report = replace(report, extras={**report.extras, **message.extras})
        return Reply(task, report, message.payload, prepared=message, personal=personal)

    def keep(self, reply: Reply, update: Update) -> None:
        """Make the prepared state the client's state, after the server accepted its update.

        Args:
            reply: the client's reply, with the prepared state.
            update: the decoded update.
        """
        assert reply.prepared is not None
        self.uplink.keep(reply.prepared)
        self.remember(reply, update)

    def remember(self, reply: Reply, update: Update) -> None:
        """Store what every rank keeps of a client: the penalty's memory, and the personal tensors."""
        task = reply.task
        self.penalty.remember(task.owner, task.round, self.task_parts.compressed(task), update)
        if reply.personal is not None:
            self.personal.keep(task.owner, self.task_parts.kept(task), reply.personal, task.round)


def _restricted(vector_D: Tensor, part: Part, sent: Part) -> Tensor:
    """Return the entries of a sub-model's vector that lie in the part that a client sends."""
    if sent is part:
        return vector_D
    # The cached value also holds the part, so that no other part can get its id().
    _, entries = sent.derived(id(part), lambda: (part, Entries(sent, part)))
    return entries.take(vector_D)


class Clients(Piece):
    """Runs a round's tasks on its clients, in this process or elsewhere.

    Attributes:
        known: whether a refused update is a sign of diverged training, and not of a hostile sender.
        states_wait: whether a reply has what its client keeps, so that this can wait until the update arrives.
        arrives: whether clients work elsewhere, in real time: then :meth:`post` and :meth:`arrived` are there.
    """

    known: ClassVar[bool] = True
    states_wait: ClassVar[bool] = False
    arrives: ClassVar[bool] = False

    @abstractmethod
    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:
        """Have clients train, and yield their replies in the order of the tasks."""

    def post(self, tasks: Sequence[Task]) -> None:
        """Have clients begin to train, without waiting for them."""
        raise NotImplementedError

    def arrived(self, tasks: Sequence[Task]) -> Iterator[Reply]:
        """Wait shortly for clients that were asked by :meth:`post`, and yield the replies that have arrived.

        Args:
            tasks: those without a reply; a client that cannot answer any more is lost.
        """
        raise NotImplementedError

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:
        """Have clients do another job, and yield the results that arrive, in the order of the tasks."""

    @abstractmethod
    def take(self, reply: Reply, update: Update) -> None:
        """Tell a client that the server accepted its update."""

    def within_reach(self, clients: IntArray) -> IntArray:
        """Return the clients among ``clients`` that can be asked now; by default all."""
        return clients

    def describe(self) -> str:
        """Return nothing: the place where clients run is no setting."""
        return ""


class OwnClients(Clients):
    """Clients in the server's process, which keeps their state in its stores.

    Args:
        executor: runs their jobs.
        side: does their work beside training.
    """

    states_wait: ClassVar[bool] = True

    def __init__(self, executor: Executor, side: ClientSide) -> None:
        self.executor, self.side = executor, side

    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:  # noqa: D102
        given = self.side.task_parts.broadcast.given
        for result in self.executor.run(train, tasks, lambda task: given(self.side.recall(task))):
            yield self.side.send(result, self.begun)

    def begun(self, task: Task) -> Tensor:
        """Return the values that a task's client began with, without personal and frozen tensors, shape (D,)."""
        return self.executor.bench.resident(self.side.task_parts.broadcast.given(task)).anchor_D

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:  # noqa: D102
        # Static statistics are those of the global models, so clients gather them without their personal tensors.
        given = self.side.task_parts.broadcast.given
        recall = given if job is statistics else lambda task: given(self.side.with_personal(task))
        return self.executor.run(job, tasks, recall)

    def take(self, reply: Reply, update: Update) -> None:  # noqa: D102
        self.side.keep(reply, update)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load nothing: the clients' state is in the module's stores.

        Raises:
            ConfigurationError: the checkpoint is of a run on Flower, whose nodes keep the clients' state.
        """
        if state:
            raise ConfigurationError(
                "Expected a checkpoint with its clients' residuals but got one of a run on Flower, where clients keep "
                "them: go on with hetfl flower server"
            )
