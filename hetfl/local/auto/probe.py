"""How long ways of training a level's clients take, found by a few steps of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from hetfl.errors import ConfigurationError
from hetfl.local.auto.by_level import ByLevel
from hetfl.local.executor import Bench, Executor
from hetfl.local.jobs import train
from hetfl.local.workers import Workers
from hetfl.types import Task

STEPS = 2
"""Steps that each client of a probe takes at least, if it has so many."""
PATIENCE = 0.1
"""Seconds that a client may take more steps in: with few of them, what is done once for each client counts too much."""
REPETITIONS = 3
"""Timed runs of a form, after one that is not timed."""
HOPELESS = 3.0
"""A form that takes so many times what the best one takes is not timed again."""


@dataclass(frozen=True)
class Form:
    """A way of training a level's clients.

    Attributes:
        processes: in worker processes, rather than in this one.
        clients: how many are trained together; 0: one after the other, by the plain executor.
    """

    processes: bool
    clients: int

    def __str__(self) -> str:
        how = f"{self.clients} at once" if self.clients else "plainly one by one"
        return f"{how} in processes" if self.processes else f"{how} here"


def executor_of(clients: dict[str, int], processes: bool, num_workers: int) -> Executor:
    """Return the executor that trains every level in its form, all of them in one place.

    Args:
        clients: by level, how many are trained together, as in :class:`Form`.
        processes: in worker processes, rather than in this one.
        num_workers: number of processes.
    """
    inner = ByLevel(clients)
    return Workers(num_workers, inner) if processes else inner


def time_forms(
    bench: Bench, tasks: Sequence[Task], forms: Sequence[Form], num_workers: int
) -> tuple[dict[Form, float], str]:
    """Return the seconds per sample of the forms that are possible, and why others are not.

    All clients of a probe are the one with most to do: in processes every one of them then has a full share of equal
    clients, whatever a cohort would leave for it.

    Args:
        bench: what is trained on what; another executor's bench stays as it is.
        tasks: of one level.
        forms: what to try; those of the plain executor are always possible.
        num_workers: number of processes.
    """
    found: dict[Form, float] = {}
    refusal = ""
    largest = max(tasks, key=bench.passes)
    one = replace(largest, steps=_steps(bench, largest))
    for form in forms:
        share = max(form.clients, 1) * (num_workers if form.processes else 1)
        with closing(executor_of({tasks[0].level: form.clients}, form.processes, num_workers)) as executor:
            executor.open(bench)
            try:
                found[form] = _seconds(executor, [one] * share, HOPELESS * min(found.values(), default=torch.inf))
            except ConfigurationError as error:
                if not form.clients:
                    raise
                refusal = str(error)
    return found, refusal


def _steps(bench: Bench, task: Task) -> int:
    """Return the steps for each client of a level, found by one who takes a few."""
    few = replace(task, steps=STEPS)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        passes = train(bench, few).report.passes
        seconds.append((time.perf_counter() - start) / passes)
    return max(STEPS, int(PATIENCE / (min(seconds) * bench.problem.local.batch_size)))


def _seconds(executor: Executor, tasks: Sequence[Task], hopeless: float) -> float:
    """Return the least seconds per sample of a few runs."""
    times = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        samples = sum(result.report.passes for result in executor.run(train, tasks))
        times.append((time.perf_counter() - start) / samples)
        if len(times) > 1 and times[-1] > hopeless:
            break
    return min(times[1:])
