"""The executor that trains several clients of a level in one call of a batched net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hetfl.errors import ConfigurationError
from hetfl.local.bench import Bench
from hetfl.local.executor import InProcess, Job, Result
from hetfl.local.jobs import train
from hetfl.local.stacked.stack import Stack
from hetfl.types import Task


class Stacked(InProcess):
    """Trains several clients of one level together; jobs other than training run one after the other.

    For small nets most of an operation's time is overhead: one operation for ten clients takes little longer than for
    one. The clients of a group have the same model, level, round and learning rate; a cohort is divided into groups of
    nearly equal size. The deltas are those of :class:`~hetfl.local.Sequential` up to rounding.

    Clients are folded into the channels (:mod:`hetfl.local.stacked.folding`) if that computes the same, and otherwise
    the net is batched by ``torch.func``. The optimizer must be SGD; nets with dropout or running statistics are
    refused.

    Args:
        clients: largest number of clients that are trained together; memory grows with it.

    Raises:
        ConfigurationError: ``clients`` is below 1.
    """

    def __init__(self, clients: int = 16) -> None:
        if clients < 1:
            raise ConfigurationError(f"Expected clients of at least 1 for executor Stacked but got {clients}")
        self.clients = clients
        self._stacks: dict[str, Stack] = {}

    @property
    def most(self) -> int:  # noqa: D102
        return self.clients

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        self._stacks = {}

    def groups(self, job: Job, tasks: Sequence[Task]) -> list[list[int]]:  # noqa: D102
        if job is not train:
            return super().groups(job, tasks)
        for task in tasks:
            self.check(task)
        return [part for group in alike(tasks) for part in evenly(group, self.clients)]

    def check(self, task: Task) -> None:
        """Build the stack of a task's level, before a worker process gets its tasks.

        Raises:
            ConfigurationError: clients of the level cannot be trained together.
        """
        self._stack(task)

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:  # noqa: D102
        if job is not train:
            return [job(self.bench, task) for task in tasks]
        return self._stack(tasks[0]).train(tasks)

    def _stack(self, task: Task) -> Stack:
        if task.level not in self._stacks:
            self._stacks[task.level] = Stack(self.bench, task)
        return self._stacks[task.level]


def alike(tasks: Sequence[Task]) -> list[list[int]]:
    """Return the positions of tasks with the same model, level, round, version and learning rate, group by group."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, task in enumerate(tasks):
        groups.setdefault((task.model, task.level, task.round, task.version, task.lr), []).append(i)
    return list(groups.values())


def evenly(items: Sequence[int], most: int) -> list[list[int]]:
    """Return consecutive parts of at most ``most`` items, whose sizes differ by at most one.

    >>> evenly(range(7), 3)
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    count = -(-len(items) // most)
    size, larger = divmod(len(items), count)
    ends = [part * size + min(part, larger) for part in range(count + 1)]
    return [list(items[start:end]) for start, end in itertools.pairwise(ends)]
