"""One client after the other, in this process: the plain executor that the others are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetfl.local.executor import Executor, Job, LocalResult, LocalTask


class Sequential(Executor):
    """Runs clients one after the other, with torch's own threads inside each step; any net, any device."""

    def run(self, job: Job, tasks: Sequence[LocalTask]) -> Iterator[LocalResult]:  # noqa: D102
        for task in tasks:
            yield job(self.bench, task)
