"""The executor of a module that names none."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hetfl.cores import cores_of_run, usable_cores
from hetfl.local.bench import Bench
from hetfl.local.by_shape import ByShape
from hetfl.local.executor import Executor, Job, Recall, Result
from hetfl.local.forks import fork_refusal
from hetfl.local.sequential import Sequential
from hetfl.local.workers import Workers
from hetfl.types import Task


class DefaultExecutor(Executor):
    """Worker processes with one thread each on a CPU, with clients of small nets in groups; else one after the other.

    It is :class:`~hetfl.local.Workers` with :class:`~hetfl.local.by_shape.ByShape`, one process per core, if the model
    is on the CPU of a Linux machine without a visible accelerator, and the trainer has one process. Otherwise it is
    :class:`~hetfl.local.Sequential`. Of several runs of ``hetfl compare --jobs`` each has a share of the processes.
    Groups depend on the number of cores at the start of a run, which the checkpoint keeps: a resumed run has the same
    bits on any number of cores.
    """

    def __init__(self) -> None:
        self.processes = usable_cores()
        self._ranks, self._device = 1, "cpu"  # the device of a run that is only described
        self._executor: Executor = Sequential()

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        self._executor.close()
        self._device = bench.device.type
        self._executor = Workers(inner=ByShape(self.processes)) if self._forks else Sequential()
        self._executor.open(bench)

    @property
    def _forks(self) -> bool:
        """Whether worker processes train."""
        return self._wanted and not fork_refusal()

    @property
    def _wanted(self) -> bool:
        """Whether worker processes would be faster."""
        # Processes of macOS can fork, but its system libraries do not expect it.
        return sys.platform == "linux" and self._device == "cpu" and self._ranks == 1

    @property
    def room(self) -> int:  # noqa: D102
        return self._executor.room

    @property
    def words(self) -> str:  # noqa: D102
        if not self._forks:
            return "one client after the other" + f", because of {fork_refusal()}" * self._wanted
        count = cores_of_run()
        return f"{count} worker process{'es' * (count > 1)} with one thread each, small nets in groups"

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        yield from self._executor.run(job, tasks, recall)

    def close(self) -> None:  # noqa: D102
        self._executor.close()

    def share(self, ranks: int) -> None:  # noqa: D102
        self._ranks = ranks

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"processes": self.processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        if "device" not in state:  # Auto's state, in which "processes" says whether processes train
            self.processes = int(state.get("processes", self.processes))  # a run of a named executor has none
