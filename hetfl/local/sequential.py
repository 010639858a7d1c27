"""One client after the other, in this process: the plain executor that the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.local.executor import InProcess, Job, Result
from hetfl.types import Task


class Sequential(InProcess):
    """Runs clients one after the other, with torch's own threads inside each step; any net, any device."""

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:  # noqa: D102
        return [job(self.bench, task) for task in tasks]
