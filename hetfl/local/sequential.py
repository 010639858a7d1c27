"""The simplest executor, the reference for all others: one client after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.local.executor import InProcess, Job, Result
from hetfl.types import Task


class Sequential(InProcess):
    """Runs clients one after the other, with torch's threads inside each step; for any net and any device."""

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:  # noqa: D102
        return [job(self.bench, task) for task in tasks]
