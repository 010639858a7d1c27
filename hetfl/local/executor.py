"""What an executor is: it runs jobs of clients on resident nets and returns their results in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetfl.data import ClientData, Transform
from hetfl.entries import Entries
from hetfl.errors import ConfigurationError
from hetfl.local.channels_last import ChannelsLast
from hetfl.local.method import LocalMethod
from hetfl.local.resident import ResidentNet
from hetfl.local.training import LocalTraining
from hetfl.part import Part, only
from hetfl.piece import Piece
from hetfl.seeding import generator
from hetfl.submodel import state_of, take
from hetfl.tree import Tree
from hetfl.types import NOTHING, ClientContext, Report, Task


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


@dataclass(frozen=True)
class LocalProblem:
    """What is trained, and how.

    Attributes:
        seed: of every random choice.
        local: the settings of local training.
        levels: by name of a level, its leading block.
        build: returns a new net of a level on the global model's device.
        method: says what is computed.
        precision_context: returns the trainer's precision as a context, for other processes.
        personal: names of the tensors that stay with their client.
    """

    seed: int
    local: LocalTraining
    levels: Mapping[str, Part]
    build: Callable[[str], nn.Module]
    method: LocalMethod
    precision_context: Callable[[], AbstractContextManager[object]]
    personal: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Result:
    """What a job returns.

    Attributes:
        task: the task it answers.
        report: what the client reports of it.
        vector: flat result whose meaning the job defines, shape (D,); a delta for training.
    """

    task: Task
    report: Report
    vector: Tensor


class Bench:
    """The resident nets of one process: one per level, built at first use.

    Args:
        problem: what is trained.
        data: on what.
        models: the tensors of every global model by name.
    """

    def __init__(self, problem: LocalProblem, data: ClientSource, models: Sequence[Mapping[str, Tensor]]) -> None:
        self.problem, self.data, self.models = problem, data, models
        self._residents: dict[str, ResidentNet] = {}
        self._narrow: dict[str, nn.Module] = {}

    def resident(self, task: Task) -> ResidentNet:
        """Return the net of the task's level with its anchor at the present values of the task's global model."""
        resident = self._of_level(task.level)
        resident.anchor(self.models[task.model], self.part(task), (task.model, task.version))
        return resident

    def part(self, task: Task) -> Part:
        """Return what a task's client holds."""
        return task.part or self.problem.levels[task.level]

    def narrowed(self, task: Task, level: str, inputs_N: Tree) -> Tensor:
        """Return the outputs of a task's net at a smaller level, with the values that the net has now.

        Raises:
            ConfigurationError: the level is not a part of the task's.
        """
        outer, inner = self.problem.levels[task.level], self.problem.levels[level]
        if not outer.covers(inner):
            raise ConfigurationError(f"Expected a level within {task.level} to narrow to but got {level}")
        tensors = state_of(self._of_level(task.level).net)
        narrowed = {name: take(tensors[name], entry) for name, entry in inner.items()}
        if level not in self._narrow:  # not a resident net: how that lays images out is found by a pass of its own
            self._narrow[level] = self.problem.build(level).train()
        outputs: Tensor = functional_call(self._narrow[level], narrowed, (inputs_N,))
        return outputs

    def context(self, task: Task, labels_K: Tensor) -> ClientContext:
        """Return what local training may know of a task's client."""
        random = generator(self.problem.seed, "method", task.round, task.client)
        begun, narrow = self._of_level(task.level).begun(), partial(self.narrowed, task)
        return ClientContext(task.client, task.round, labels_K, task.level, task.lr, 0, random, begun, narrow)

    def beyond(self, task: Task) -> Tensor | None:
        """Return how far from the anchor a task's client begins, shape (D,), for its personal tensors; None: at it."""
        if task.personal is None:
            return None
        part = self.part(task)
        beyond_D = self._of_level(task.level).anchor_D.new_zeros(part.layout.size)
        Entries(only(part, self.problem.personal), part.dense).put(beyond_D, task.personal.to(beyond_D))
        return beyond_D

    def small(self, task: Task) -> Task:
        """Return a task as another process needs it: that has the leading blocks, and nothing that is sent."""
        known = self.part(task) is self.problem.levels[task.level]
        return replace(task, part=NOTHING if known else task.part, sent=NOTHING)

    def size(self, level: str) -> int:
        """Return the number of entries of a level's net."""
        return self._of_level(level).layout.size

    def cost(self, task: Task) -> int:
        """Return what a task's training costs, in entries times samples: good for comparisons."""
        return self.passes(task) * self.size(task.level)

    def passes(self, task: Task) -> int:
        """Return how many samples a task's training passes through the net, repetitions counted."""
        return len(self.data.client_data(task.client).targets) * (task.epochs or self.problem.local.epochs)

    @property
    def capacity(self) -> int:
        """The number of entries that hold any job's result."""
        # Statistics can be longer than the parameters only by their counts: one entry per norm layer.
        return sum(tensor.numel() for tensor in self.models[0].values()) + len(self.models[0])

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
        return next(iter(self.models[0].values())).device


Job = Callable[[Bench, Task], Result]
"""A module-level function that does one client's work on a bench: training, statistics."""


Recall = Callable[[Task], Task]
"""Returns a task with what its client remembers: of a penalty, and of its own."""


def recalled(task: Task, recall: Recall | None) -> Task:
    """Return a task with what its client remembers."""
    return task if recall is None else recall(task)


class Executor(Piece):
    """Runs jobs for the clients of a cohort.

    The result of a task depends on the task and the global model alone. For one kind of executor, thread setting and
    device the bits are the same for any number of workers; between kinds they agree to rounding.
    """

    def open(self, bench: Bench) -> None:
        """Learn what is trained on what.

        Args:
            bench: this process's resident nets; its tensors are read whenever a task brings a new version.
        """
        self.bench = bench

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Task], recall: Recall | None = None) -> Iterator[Result]:
        """Yield the results in the order of the tasks.

        Args:
            job: what each client does.
            tasks: one per client.
            recall: gives what a task's client remembers, asked for just before the task is run; None: nothing.
        """

    def close(self) -> None:
        """End whatever the executor started."""

    def describe(self) -> str:
        """Return nothing: a run may go on with another executor."""
        return ""


class InProcess(Executor):
    """Runs jobs in one process, so many clients at a time; it is also what a process of ``Workers`` does.

    A cohort is divided into groups that depend on the cohort alone, so that results do not depend on who computes them.
    """

    @property
    def most(self) -> int:
        """Largest number of tasks of a group."""
        return 1

    def groups(self, job: Job, tasks: Sequence[Task]) -> list[list[int]]:
        """Return which positions of ``tasks`` are computed together; by default each alone.

        Raises:
            ConfigurationError: a task's net cannot be trained in this way.
        """
        return [[i] for i in range(len(tasks))]

    @abstractmethod
    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of the tasks of one group."""

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        group_of = {i: group for group in self.groups(job, tasks) for i in group}
        done: dict[int, Result] = {}
        for i, task in enumerate(tasks):
            if i not in done:
                # Only now: what waits to be yielded is then at most one group of each level.
                group = group_of[i]
                done.update(zip(group, self.work(job, [recalled(tasks[k], recall) for k in group]), strict=True))
            yield replace(done.pop(i), task=task)
