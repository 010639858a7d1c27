"""The executor that times the others and uses the fastest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hetfl.cores import cores_of_run
from hetfl.errors import ConfigurationError
from hetfl.local.auto.probe import Form, executor_of, time_forms
from hetfl.local.auto.schedule import duration, quickest
from hetfl.local.bench import Bench
from hetfl.local.executor import Executor, Job, Recall, Result
from hetfl.local.forks import fork_refusal
from hetfl.local.jobs import train
from hetfl.local.sequential import Sequential
from hetfl.types import NOTHING, Task

log = logging.getLogger(__name__)


class Auto(Executor):
    """Times several ways to train each level for some seconds before the first training, and uses the fastest.

    The ways are: clients one after the other by :class:`~hetfl.local.Sequential`; one at a time by
    :class:`~hetfl.local.Stacked`; or several together by ``Stacked``. Each runs in this process with its threads, or in
    worker processes with one thread each. All levels run in the same place, so that they do not compete for cores. The
    choice minimises the time of a cohort like the first one. It is logged, one line per level, and saved in the
    checkpoint: a resumed run does not choose again, and gives the same bits. Before the choice, and where nothing is
    trained, jobs run one after the other.

    Args:
        clients: largest number of clients that are trained together.
        num_workers: number of processes; None: one per core that this run may use.

    Raises:
        ConfigurationError: fewer than one client or process.
    """

    def __init__(self, clients: int = 16, num_workers: int | None = None) -> None:
        for name, value in (("clients", clients), ("num_workers", num_workers)):
            if value is not None and value < 1:
                raise ConfigurationError(f"Expected {name} of at least 1 for executor Auto but got {value}")
        self.clients, self.num_workers = clients, num_workers or cores_of_run()
        self.chosen: dict[str, Any] = {}
        self._executor: Executor = Sequential()

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        if self.chosen and self.chosen["device"] != bench.device.type:
            self.chosen = {}
        self._begin()

    def _begin(self) -> None:
        """Open the chosen executor, or :class:`Sequential` if none is chosen yet."""
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

    @property
    def room(self) -> int:  # noqa: D102
        return self._executor.room

    def close(self) -> None:  # noqa: D102
        self._executor.close()

    def share(self, ranks: int) -> None:  # noqa: D102
        if ranks > 1:
            raise ConfigurationError(
                "Expected an executor by name for several devices but got Auto, which every rank would choose by itself"
            )

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.chosen

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.chosen = dict(state) if "device" in state else {}  # another executor's state is no choice

    def _choose(self, tasks: Sequence[Task]) -> None:
        """Time all forms of all levels; choose the forms, all in one place, that minimise the time of this cohort."""
        levels = list(self.bench.problem.levels)
        present = {level: [task for task in tasks if task.level == level] for level in levels}
        present = {level: level_tasks for level, level_tasks in present.items() if level_tasks}
        seconds: dict[str, dict[Form, float]] = {}
        refusals = {}
        for level in levels:
            # No client has this level yet: assume as many as at the other levels.
            absent = [
                replace(task, level=level, part=NOTHING, sent=NOTHING)
                for task in tasks[: max(1, len(tasks) // len(levels))]
            ]
            level_tasks = present.get(level, absent)
            forms = self._forms(len(level_tasks), alone=list(present) == [level] or level not in present)
            seconds[level], refusals[level] = time_forms(self.bench, level_tasks, forms, self.num_workers)
        passes = {level: [self.bench.passes(task) for task in members] for level, members in present.items()}
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
        """Return the forms that may be the fastest for a number of clients of one level.

        Args:
            count: number of clients.
            alone: whether the cohort has no other levels. Other levels could use the processes that stay idle when one
                process trains two processes' share of these clients at once.
        """
        processes = not fork_refusal() and self.bench.device.type == "cpu" and self.num_workers > 1
        share = -(-count // self.num_workers)
        most = {True: {share} if alone else {share, min(count, 2 * share)}, False: {count}}
        # Processes first: on a busy machine threads are much slower, and are then given up after the first run.
        places = [True, False] if processes else [False]
        return [
            Form(p, clients) for p in places for clients in sorted({0, 1, *(min(n, self.clients) for n in most[p])})
        ]
