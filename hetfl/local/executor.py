"""What an executor is: it runs jobs of clients on resident nets and returns their results in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hetfl.data import ClientData, Transform
from hetfl.local.channels_last import ChannelsLast
from hetfl.local.resident import ResidentNet
from hetfl.local.training import LocalTraining
from hetfl.types import ClientContext, Index


class ClientSource(Protocol):
    """What local training needs of a data module."""

    @property
    def transform(self) -> Transform:
        """Turns raw inputs into what the net takes."""
        ...

    def client_data(self, client: int, split: Literal["train", "test"] = "train") -> ClientData:
        """Return a client's samples."""
        ...

    def labels(self, client: int) -> Tensor:
        """Return which classes a client's training data has, bool (K,)."""
        ...


class LocalProblem(Protocol):
    """What local training needs of a federated module."""

    seed: int
    local: LocalTraining

    @property
    def levels(self) -> Mapping[str, object]:
        """The levels by name."""
        ...

    def build(self, level: str) -> nn.Module:
        """Return a new net of a level on the module's device."""
        ...

    def index(self, level: str, round: int) -> Index:
        """Return what a level's sub-model holds of the global model."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss."""
        ...

    def precision_context(self) -> AbstractContextManager[object]:
        """Return the trainer's precision as a context, for other processes."""
        ...


@dataclass(frozen=True)
class LocalTask:
    """One client's work in one round.

    Attributes:
        client: the client's id.
        level: the level it works at.
        round: the round.
        version: mark of the global model; another one tells that its values have changed.
        lr: the clients' learning rate γ of the round.
        epochs: passes over the client's data; None: as local training has it.
        memory_D: what a penalty keeps of the client, shape (D,); None if it is all zero or not needed.
        cluster: number of the global model that it works with.
        steps: largest number of steps, for those who only want to know how long they take; None: all.
    """

    client: int
    level: str
    round: int
    version: int
    lr: float = 0.0
    epochs: int | None = None
    memory_D: Tensor | None = None
    cluster: int = 0
    steps: int | None = None


@dataclass(frozen=True)
class LocalResult:
    """What a job returns: a flat vector whose meaning the job defines, the mean loss, and how much was done.

    Attributes:
        task: the task it answers.
        vector: flat result, shape (D,); a delta for training.
        loss: mean loss over all samples that were passed.
        num_samples: size of the client's training set.
        num_passes: number of samples passed through the net, repetitions counted.
    """

    task: LocalTask
    vector: Tensor
    loss: float
    num_samples: int
    num_passes: int


class Bench:
    """The resident nets of one process: one per level, built at first use.

    Args:
        problem: the federated module.
        data: its data.
        tensors: of the global model; of the first one if there are several.
        others: of the global models of further clusters.
    """

    def __init__(
        self,
        problem: LocalProblem,
        data: ClientSource,
        tensors: Mapping[str, Tensor],
        others: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self.problem, self.data, self.tensors, self.others = problem, data, tensors, others
        self._residents: dict[str, ResidentNet] = {}

    def resident(self, task: LocalTask) -> ResidentNet:
        """Return the net of the task's level with its anchor at the present global model of the task's cluster."""
        resident = self._of_level(task.level)
        tensors = self.others[task.cluster - 1] if task.cluster else self.tensors
        key = (task.cluster, task.round, task.version)
        resident.anchor(tensors, self.problem.index(task.level, task.round), key)
        return resident

    def size(self, level: str) -> int:
        """Return the number of entries of a level's net."""
        return self._of_level(level).layout.size

    def cost(self, task: LocalTask) -> int:
        """Return what a task's training costs, in entries times samples: good for comparisons."""
        return self.passes(task) * self.size(task.level)

    def passes(self, task: LocalTask) -> int:
        """Return how many samples a task's training passes through the net, repetitions counted."""
        return len(self.data.client_data(task.client).targets) * (task.epochs or self.problem.local.epochs)

    @property
    def capacity(self) -> int:
        """The number of entries that hold any job's result."""
        # Statistics can be longer than the parameters only by their counts: one entry per norm layer.
        return sum(tensor.numel() for tensor in self.tensors.values()) + len(self.tensors)

    def _of_level(self, level: str) -> ResidentNet:
        if level not in self._residents:
            # Lightning evaluates in inference mode; tensors born there could never be trained.
            with torch.inference_mode(False):
                self._residents[level] = ResidentNet(self.problem.build(level), self.problem.local.optimizer)
                self._residents[level].net.register_forward_pre_hook(ChannelsLast())
        return self._residents[level]

    @property
    def device(self) -> torch.device:
        """The device of the global model."""
        return next(iter(self.tensors.values())).device


Job = Callable[[Bench, LocalTask], LocalResult]
"""A module-level function that does one client's work on a bench: training, statistics."""


Memory = Callable[[LocalTask], Tensor | None]
"""What is kept of a task's client, shape (D,), or None if it is all zero."""


def remembering(task: LocalTask, memory: Memory | None) -> LocalTask:
    """Return the task with what its client remembers."""
    found = None if memory is None else memory(task)
    return task if found is None else replace(task, memory_D=found)


class Executor(ABC):
    """Runs jobs for the clients of a cohort.

    The result of a task depends on the task and the global model alone. For one kind of executor, thread setting and
    device the bits are the same for any number of workers; between kinds they agree to rounding.
    """

    def setup(self, bench: Bench) -> None:
        """Learn what is trained on what.

        Args:
            bench: this process's resident nets; its tensors are read whenever a task brings a new version.
        """
        self.bench = bench

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[LocalTask], memory: Memory | None = None) -> Iterator[LocalResult]:
        """Yield the results in the order of the tasks.

        Args:
            job: what each client does.
            tasks: one per client.
            memory: gives what a task's client remembers, asked for just before the task is run; None: nothing.
        """

    def close(self) -> None:
        """End whatever the executor started."""

    def state_dict(self) -> dict[str, Any]:
        """Return what results depend on beside the settings, in plain types, for a checkpoint. By default nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, maybe of another kind of executor. By default nothing."""


class InProcess(Executor):
    """Runs jobs in one process, so many clients at a time; it is also what a process of ``Workers`` does.

    A cohort is divided into groups that depend on the cohort alone, so that results do not depend on who computes them.
    """

    @property
    def most(self) -> int:
        """Largest number of tasks of a group."""
        return 1

    def groups(self, job: Job, tasks: Sequence[LocalTask]) -> list[list[int]]:
        """Return which positions of ``tasks`` are computed together; by default each alone.

        Raises:
            ConfigurationError: a task's net cannot be trained in this way.
        """
        return [[i] for i in range(len(tasks))]

    @abstractmethod
    def work(self, job: Job, tasks: Sequence[LocalTask]) -> list[LocalResult]:
        """Return the results of the tasks of one group."""

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[LocalTask], memory: Memory | None = None
    ) -> Iterator[LocalResult]:
        group_of = {i: group for group in self.groups(job, tasks) for i in group}
        done: dict[int, LocalResult] = {}
        for i, task in enumerate(tasks):
            if i not in done:
                # Only now: what waits to be yielded is then at most one group of each level.
                group = group_of[i]
                done.update(zip(group, self.work(job, [remembering(tasks[k], memory) for k in group]), strict=True))
            yield replace(done.pop(i), task=task)
