"""Groups of clients that a model of cost from shapes expects to train faster together."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.errors import ConfigurationError
from hetfl.local.auto.probe import Form
from hetfl.local.auto.schedule import quickest
from hetfl.local.bench import Bench
from hetfl.local.executor import InProcess, Job, Result
from hetfl.local.jobs import train
from hetfl.local.stacked import Stacked
from hetfl.local.stacked.stacked import alike, evenly
from hetfl.types import Task

STEP_COST = 1.28e6
"""The fixed cost of a step, in entries times samples: calls of layers, clipping, the optimizer."""
TOGETHER = 1.1
"""How much dearer an entry is in a group, whose rows leave the processor's cache."""
GAIN = 0.9
"""A level is grouped if a group of :data:`TYPICAL` clients takes at most this share of the time one by one."""
TYPICAL = 5
MOST = 16
"""Largest number of clients of a group."""


class ByShape(InProcess):
    r"""Trains clients of small levels together, as far as the other processes have work.

    A client's step with B samples of a net with D entries costs :math:`c = F + B D`, and one of a group of n clients
    :math:`F / n + 1.1 B D`, where F is :data:`STEP_COST`. So small nets and small batches gain, and wide nets do not.
    The constants were measured for convolutional nets, residual nets and perceptrons (``benchmarks/grouping.py``).
    Levels whose net or method cannot train several clients at once are trained one by one.

    Args:
        processes: number of processes among which a cohort is divided; groups depend on it.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._stacked = Stacked(MOST)
        self._grouped: dict[str, bool] = {}

    @property
    def most(self) -> int:  # noqa: D102
        return MOST

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        self._stacked.open(bench)
        self._grouped = {}

    def groups(self, job: Job, tasks: Sequence[Task]) -> list[list[int]]:  # noqa: D102
        if job is not train or not {task.level for task in tasks if self._gains(task)}:
            return super().groups(job, tasks)
        sizes = self._sizes(tasks)
        return [part for group in alike(tasks) for part in evenly(group, sizes[tasks[group[0]].level])]

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:  # noqa: D102
        return [job(self.bench, tasks[0])] if len(tasks) == 1 else self._stacked.work(job, tasks)

    def _sizes(self, tasks: Sequence[Task]) -> dict[str, int]:
        """Return by level the largest size of a group such that the cohort ends first."""
        passes: dict[str, list[int]] = {}
        for task in tasks:
            passes.setdefault(task.level, []).append(self.bench.passes(task))
        seconds = {level: self._costs(level, len(clients)) for level, clients in passes.items()}
        forms = quickest(seconds, passes, True, self.processes)
        return {level: form.clients for level, form in forms.items()}

    def _costs(self, level: str, count: int) -> dict[Form, float]:
        """Return the relative cost of a sample by size of group, all processes together."""
        sizes = {-(-count // groups) for groups in range(1, count + 1)} if self._grouped[level] else {1}
        costs = {1: self._cost(level, 1)} | {n: self._cost(level, n) for n in sorted(sizes) if 2 <= n <= MOST}
        return {Form(True, n): cost / self.processes for n, cost in costs.items()}

    def _cost(self, level: str, clients: int) -> float:
        """Return the cost of a sample of one of several clients that train together."""
        fixed = STEP_COST / self.bench.problem.local.batch_size
        return fixed / clients + (1.0 if clients == 1 else TOGETHER) * self.bench.size(level)

    def _gains(self, task: Task) -> bool:
        """Return whether clients of a task's level train faster together, and can."""
        if task.level not in self._grouped:
            gains = self._cost(task.level, TYPICAL) <= GAIN * self._cost(task.level, 1)
            if gains:
                try:
                    self._stacked.check(task)
                except ConfigurationError:
                    gains = False
            self._grouped[task.level] = gains
        return self._grouped[task.level]
