"""Measures the time of each way of training a level's clients, by a few steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from hetfl.errors import ConfigurationError
from hetfl.local.auto.by_level import ByLevel
from hetfl.local.bench import Bench
from hetfl.local.executor import Executor
from hetfl.local.jobs import train
from hetfl.local.workers import Workers
from hetfl.types import Task

STEPS = 2
"""Least number of steps of each client in a probe, if the client has so many."""
PATIENCE = 0.1
"""Seconds of steps per client: with fewer steps, the fixed work per client would count too much."""
REPETITIONS = 3
"""Timed runs of a form, after one untimed run."""
HOPELESS = 3.0
"""A form is not timed again once it takes more than so many times the best form's time."""


@dataclass(frozen=True)
class Form:
    """A way of training a level's clients.

    Attributes:
        processes: whether worker processes train them, or this process.
        clients: the number of clients trained together; 0: one after the other by :class:`~hetfl.local.Sequential`.
    """

    processes: bool
    clients: int

    def __str__(self) -> str:
        grouping = f"{self.clients} at once" if self.clients else "plainly one by one"
        return f"{grouping} in processes" if self.processes else f"{grouping} here"


def executor_of(clients: dict[str, int], processes: bool, num_workers: int) -> Executor:
    """Return the executor that trains every level in its form, all levels in one place.

    Args:
        clients: by level, the number of clients trained together, as in :class:`Form`.
        processes: whether worker processes train them, or this process.
        num_workers: number of processes.
    """
    inner = ByLevel(clients)
    return Workers(num_workers, inner) if processes else inner


def time_forms(
    bench: Bench, tasks: Sequence[Task], forms: Sequence[Form], num_workers: int
) -> tuple[dict[Form, float], str]:
    """Return the seconds per sample of the possible forms, and the reason why others are impossible.

    All clients of a probe are copies of the client with the most samples, so that every process has a full share of
    equal clients.

    Args:
        bench: the problem and the data; the executors get it in turn, and it is not changed.
        tasks: of one level.
        forms: the forms to time; those with ``clients`` 0 are always possible.
        num_workers: number of processes.

    Returns:
        The seconds per sample by form, and the last refusal; empty if no form was refused.
    """
    seconds: dict[Form, float] = {}
    refusal = ""
    largest = max(tasks, key=bench.passes)
    one = replace(largest, steps=_steps(bench, largest))
    for form in forms:
        share = max(form.clients, 1) * (num_workers if form.processes else 1)
        with closing(executor_of({tasks[0].level: form.clients}, form.processes, num_workers)) as executor:
            executor.open(bench)
            try:
                hopeless = HOPELESS * min(seconds.values(), default=torch.inf)
                seconds[form] = _seconds(executor, [one] * share, hopeless)
            except ConfigurationError as error:
                if not form.clients:
                    raise
                refusal = str(error)
    return seconds, refusal


def _steps(bench: Bench, task: Task) -> int:
    """Return the number of steps per client of a probe, computed from the time of a few steps of one client."""
    few = replace(task, steps=STEPS)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        passes = train(bench, few).report.passes
        seconds.append((time.perf_counter() - start) / passes)
    return max(STEPS, int(PATIENCE / (min(seconds) * bench.problem.local.batch_size)))


def _seconds(executor: Executor, tasks: Sequence[Task], hopeless: float) -> float:
    """Return the least seconds per sample of a few runs; stop early if a timed run is slower than ``hopeless``."""
    times = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        samples = sum(result.report.passes for result in executor.run(train, tasks))
        times.append((time.perf_counter() - start) / samples)
        if len(times) > 1 and times[-1] > hopeless:
            break
    return min(times[1:])
