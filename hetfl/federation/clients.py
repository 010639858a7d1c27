"""The clients' side of a round: what a client does with its delta, and where clients are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from hetfl.compression import ErrorFeedback, Message
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
from hetfl.seeding import generator
from hetfl.types import Report, Task
from hetfl.updates import Update


@dataclass(frozen=True)
class Reply:
    """What came of a client's task.

    Attributes:
        task: what it was asked for.
        report: what it reports of its training; None if nothing came that can be used.
        payload: the encoded update; empty if the client could not make one.
        refusal: why it could not.
        lost: why nothing came.
        prepared: what it keeps if the server takes the update; None where that is kept elsewhere.
        personal: how far its personal entries then are from the model's; None: it has none, or they are elsewhere.
    """

    task: Task
    report: Report | None = None
    payload: bytes = b""
    refusal: str = ""
    lost: str = ""
    prepared: Message | None = None
    personal: Tensor | None = None


@dataclass(frozen=True)
class ClientSide:
    """What a client does beside its training: its residual, compression, encoding, and what penalties remember.

    Attributes:
        seed: of every random choice.
        parts: where vectors lie.
        uplink: the compressor and the residuals.
        penalty: of the local objective.
        fleet: the clients' devices.
        personal: what they keep of their own.
        hooks: may change what is compressed.
    """

    seed: int
    parts: TaskParts
    uplink: ErrorFeedback
    penalty: Penalty
    fleet: Fleet
    personal: Personal
    hooks: Hooks

    def recall(self, task: Task) -> Task:
        """Return a task with what the penalty keeps of its client, for its trained parameters, and what is personal."""
        models = self.parts.models
        memory_D = self.penalty.memory(task.owner, only(task.part.dense, models.trained), models.like)
        return replace(self.with_personal(task), memory_D=memory_D)

    def with_personal(self, task: Task) -> Task:
        """Return a task with what its client keeps of its own."""
        kept = self.personal.of(task.owner, self.parts.kept(task), self.parts.models.like)
        return task if kept is None else replace(task, personal=kept)

    def send(self, result: Result) -> Reply:
        """Return what a client sends of its delta: with its residual, compressed and encoded. Its state stays."""
        task, sent, held = result.task, result.task.sent, self.parts.held(result.task)
        size = held.size
        vector_D = _restricted(result.vector, task.part.dense, sent)
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
            )
        except RefusedUpdate as error:
            return Reply(task, result.report, refusal=str(error))
        personal = _restricted(result.vector, task.part.dense, kept) if (kept := self.parts.kept(task)) else None
        report = replace(result.report, extras={**result.report.extras, **message.extras})
        return Reply(task, report, message.payload, prepared=message, personal=personal)

    def keep(self, reply: Reply, update: Update) -> None:
        """Do what a client does once the server has taken its update: its state is now the prepared one.

        Args:
            reply: what it sent, with what it prepared.
            update: the same as decoded.
        """
        assert reply.prepared is not None
        self.uplink.keep(reply.prepared)
        self.remember(reply, update)

    def remember(self, reply: Reply, update: Update) -> None:
        """Keep what every rank keeps of a client: the penalty's memory, and what is personal."""
        task = reply.task
        self.penalty.remember(task.owner, task.round, self.parts.held(task), update)
        if reply.personal is not None:
            self.personal.keep(task.owner, self.parts.kept(task), reply.personal, task.round)


def _restricted(vector_D: Tensor, part: Part, sent: Part) -> Tensor:
    """Return the entries of a sub-model's vector that a client sends."""
    if sent is part:
        return vector_D
    # What is kept holds the part, too: no other can have its identity meanwhile.
    _, entries = sent.derived(id(part), lambda: (part, Entries(sent, part)))
    return entries.take(vector_D)


class Clients(Piece):
    """Runs what a round asks of its clients, wherever they are.

    Attributes:
        known: whether an update that the server refuses tells of training, and not of its sender.
    """

    known: ClassVar[bool] = True

    @abstractmethod
    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:
        """Have clients train, and yield what came of it, in the order of the tasks."""

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:
        """Have clients do another job; yield the results that came, in the order of the tasks."""

    @abstractmethod
    def take(self, reply: Reply, update: Update) -> None:
        """Let a client know that the server took its update, as decoded."""

    def within_reach(self, clients: IntArray) -> IntArray:
        """Return those of some clients that can be asked now; by default all."""
        return clients

    def describe(self) -> str:
        """Return nothing: where clients are is no setting."""
        return ""


class OwnClients(Clients):
    """Clients in the server's own process, their state in its stores.

    Args:
        executor: runs their jobs.
        side: what they do beside.
    """

    def __init__(self, executor: Executor, side: ClientSide) -> None:
        self.executor, self.side = executor, side

    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:  # noqa: D102
        for result in self.executor.run(train, tasks, self.side.recall):
            yield self.side.send(result)

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:  # noqa: D102
        # Static sums are of the global models, whatever clients keep of their own.
        return self.executor.run(job, tasks, None if job is statistics else self.side.with_personal)

    def take(self, reply: Reply, update: Update) -> None:  # noqa: D102
        self.side.keep(reply, update)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: what belongs to clients is in the module's stores.

        Raises:
            ConfigurationError: in the checkpoint it is not.
        """
        if state:
            raise ConfigurationError(
                "Expected a checkpoint with its clients' residuals but got one of a run on Flower, where clients keep "
                "them: go on with hetfl flower server"
            )
