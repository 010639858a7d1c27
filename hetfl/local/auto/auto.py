"""The executor that tries the others and takes the fastest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hetfl.errors import ConfigurationError
from hetfl.local.auto.probe import Form, executor_of, time_forms
from hetfl.local.auto.schedule import duration, quickest
from hetfl.local.executor import Bench, Executor, Job, Recall, Result
from hetfl.local.jobs import train
from hetfl.local.sequential import Sequential
from hetfl.local.workers import can_fork, usable_cores
from hetfl.types import NOTHING, Task

log = logging.getLogger(__name__)


class Auto(Executor):
    """Tries every level for some seconds before the first training, and goes on in the fastest way.

    The ways are: one client after the other, one at a time as :class:`~hetfl.local.Stacked` does it, or several
    together; each in this process with its threads, or in worker processes of one thread. All levels are in one place,
    so that they do not compete for cores, and get the ways by which a cohort like the first one ends earliest. What was
    chosen is logged, a line per level, and goes into the checkpoint: a resumed run does not try again, and ends with
    the same bits. Before, and where nothing is trained, jobs are done one after the other.

    Args:
        clients: largest number of clients that are trained together.
        num_workers: number of processes; None: one per core that this process may use.

    Raises:
        ConfigurationError: fewer than one client or process.
    """

    def __init__(self, clients: int = 16, num_workers: int | None = None) -> None:
        for name, value in (("clients", clients), ("num_workers", num_workers)):
            if value is not None and value < 1:
                raise ConfigurationError(f"Expected {name} of at least 1 for executor Auto but got {value}")
        self.clients, self.num_workers = clients, num_workers or usable_cores()
        self.chosen: dict[str, Any] = {}
        self._executor: Executor = Sequential()

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        if self.chosen and self.chosen["device"] != bench.device.type:
            self.chosen = {}
        self._begin()

    def _begin(self) -> None:
        """Begin with the executor that was chosen; until then with the plain one."""
        self._executor.close()
        self._executor = Sequential()
        if self.chosen:
            self._executor = executor_of(self.chosen["clients"], self.chosen["processes"], self.num_workers)
        self._executor.open(self.bench)

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        if job is train and tasks and not self.chosen:
            self._choose(tasks)
            self._begin()
        yield from self._executor.run(job, tasks, recall)

    def close(self) -> None:  # noqa: D102
        self._executor.close()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.chosen

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.chosen = dict(state)

    def _choose(self, tasks: Sequence[Task]) -> None:
        """Time all forms of all levels; take those by which a cohort like this one ends earliest, all in one place."""
        levels = list(self.bench.problem.levels)
        present = {level: [task for task in tasks if task.level == level] for level in levels}
        present = {level: own for level, own in present.items() if own}
        seconds: dict[str, dict[Form, float]] = {}
        refusals = {}
        for level in levels:
            # Nobody is at this level now: then as many will be as at any other.
            absent = [replace(task, level=level, part=NOTHING) for task in tasks[: max(1, len(tasks) // len(levels))]]
            own = present.get(level, absent)
            forms = self._forms(len(own), alone=list(present) == [level] or level not in present)
            seconds[level], refusals[level] = time_forms(self.bench, own, forms, self.num_workers)
        passes = {level: [self.bench.passes(task) for task in own] for level, own in present.items()}
        best = [
            quickest(seconds, passes, place, self.num_workers)
            for place in sorted({form.processes for form in seconds[levels[0]]})
        ]
        chosen = min(best, key=lambda forms: duration(forms, seconds, passes, self.num_workers))
        for level, form in chosen.items():
            notes = [f"{other} {1e3 * t:.3g}" for other, t in seconds[level].items() if other != form]
            notes += [f"not at once: {refusals[level]}"] if refusals[level] else []
            log.info(
                f"Executor for level {level}: {form}, {1e3 * seconds[level][form]:.3g} ms a sample ({'; '.join(notes)})"
            )
        clients = {level: form.clients for level, form in chosen.items()}
        place = chosen[levels[0]].processes
        self.chosen = {"device": self.bench.device.type, "processes": place, "clients": clients}

    def _forms(self, count: int, alone: bool) -> list[Form]:
        """Return what may be the fastest for so many clients of a level.

        Args:
            count: number of clients.
            alone: whether there are no other levels, whose clients would occupy the processes that these leave idle if
                a process took two shares at once.
        """
        processes = can_fork() and self.bench.device.type == "cpu" and self.num_workers > 1
        share = -(-count // self.num_workers)
        most = {True: {share} if alone else {share, min(count, 2 * share)}, False: {count}}
        # Processes first: threads that wait for each other on a busy machine then lose at the first try.
        places = [True, False] if processes else [False]
        return [
            Form(p, clients) for p in places for clients in sorted({0, 1, *(min(n, self.clients) for n in most[p])})
        ]
