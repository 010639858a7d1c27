"""The clients' side of a round: what a client does with its delta, and where clients are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hetfl.compression import ErrorFeedback, Message
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import IntArray
from hetfl.local import Executor, LocalResult, LocalTask, LocalTraining
from hetfl.local.executor import Job
from hetfl.local.jobs import train
from hetfl.seeding import generator
from hetfl.submodel import Entries, fixed, index_layout, only
from hetfl.types import Index
from hetfl.updates import Update


@dataclass(frozen=True)
class Upload:
    """What a client sends once it has trained.

    Attributes:
        task: what it was asked for.
        loss: mean loss over all samples that were passed.
        num_samples: size of its training set.
        num_passes: number of samples passed through the net, repetitions counted.
        payload: the encoded update; empty if the client could not make one.
        refusal: why it could not.
        prepared: what it keeps if the server takes the update; None where that is kept elsewhere.
    """

    task: LocalTask
    loss: float
    num_samples: int
    num_passes: int
    payload: bytes = b""
    refusal: str = ""
    prepared: Message | None = None


@dataclass(frozen=True)
class Lost:
    """A client of the round from which nothing came, or nothing that can be used.

    Attributes:
        task: what it was asked for.
        reason: why, in words.
    """

    task: LocalTask
    reason: str


class Sending(Protocol):
    """What a client needs of a federated module to send its delta."""

    seed: int
    uplink: ErrorFeedback
    fleet: Fleet

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of the tensors that are trained and compressed; buffers travel exactly."""
        ...

    def index(self, level: str, round: int) -> Index:
        """Return what a level's sub-model holds."""
        ...

    def upload_index(self, client: int, level: str, round: int) -> Index:
        """Return what a client sends."""
        ...


def held_index(problem: Sending, task: LocalTask) -> Index:
    """Return where the vector lies that a client compresses: its upload index without buffers."""
    return only(problem.upload_index(task.client, task.level, task.round), problem.parameter_names)


def send(problem: Sending, result: LocalResult) -> Upload:
    """Return what a client sends of its delta: with its residual, compressed and encoded. Its state stays as it is."""
    task = result.task
    upload = problem.upload_index(task.client, task.level, task.round)
    held = only(upload, problem.parameter_names)
    size = index_layout(held).size
    vector_D = _restricted(result.vector, problem.index(task.level, task.round), upload)
    said = (task, result.loss, result.num_samples, result.num_passes)
    try:
        message = problem.uplink.prepare(
            task.client,
            vector_D[:size],
            exact=vector_D[size:],
            index=held,
            round=task.round,
            lr=task.lr,
            generator=generator(problem.seed, "compression", task.round, task.client),
            uplink=float(problem.fleet.rates(task.client, task.round)[2]),
        )
    except RefusedUpdate as error:
        return Upload(*said, refusal=str(error))
    return Upload(*said, message.payload, prepared=message)


def keep(uplink: ErrorFeedback, local: LocalTraining, message: Message, update: Update) -> None:
    """Do what a client does once the server has taken its update: its residual and memories are now the prepared ones.

    Args:
        uplink: has its residual.
        local: has its memories.
        message: what it sent.
        update: the same as decoded.
    """
    uplink.keep(message)
    if local.penalty is not None:
        local.penalty.remember(message.client, message.round, message.index, update)


def _restricted(vector_D: Tensor, index: Index, upload: Index) -> Tensor:
    """Return the entries of a sub-model's vector that a client sends."""
    if upload is index:
        return vector_D
    # What is kept holds the index, too: no other can have its identity meanwhile.
    _, entries = fixed(upload).derived(id(index), lambda: (index, Entries(upload, index)))
    return entries.take(vector_D)


class Clients(ABC):
    """Runs what a round asks of its clients, wherever they are.

    Attributes:
        known: whether an update that the server refuses tells of training, and not of who sent it.
    """

    known: ClassVar[bool] = True

    def begin(self) -> None:
        """Get ready to train, once a checkpoint has been loaded. By default nothing."""

    @abstractmethod
    def train(self, tasks: Sequence[LocalTask]) -> Iterator[Upload | Lost]:
        """Have clients train, and yield what they send, in the order of the tasks."""

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[LocalTask]) -> Iterator[LocalResult]:
        """Have clients do another job; yield the results in the order of the tasks, those that came."""

    @abstractmethod
    def take(self, upload: Upload, update: Update) -> None:
        """Let a client know that the server took its update, as decoded."""

    def there(self, clients: IntArray) -> IntArray:
        """Return those of some clients that can be asked now; by default all."""
        return clients

    def state_dict(self) -> dict[str, Any]:
        """Return what the server keeps of its clients, in plain types. By default nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned. By default nothing."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk. By default nothing."""


class Hosting(Sending, Protocol):
    """What clients in the server's process need of a federated module besides."""

    executor: Executor
    local: LocalTraining

    def memory(self, task: LocalTask) -> Tensor | None:
        """Return what the penalty keeps of a client."""
        ...


class OwnClients(Clients):
    """Clients in the server's own process: run by the module's executor, their state in its stores.

    Args:
        module: the federated module.
    """

    def __init__(self, module: Hosting) -> None:
        self._module = module

    def train(self, tasks: Sequence[LocalTask]) -> Iterator[Upload | Lost]:  # noqa: D102
        for result in self._module.executor.run(train, tasks, self._module.memory):
            yield send(self._module, result)

    def run(self, job: Job, tasks: Sequence[LocalTask]) -> Iterator[LocalResult]:  # noqa: D102
        return self._module.executor.run(job, tasks)

    def take(self, upload: Upload, update: Update) -> None:  # noqa: D102
        assert upload.prepared is not None
        keep(self._module.uplink, self._module.local, upload.prepared, update)

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
