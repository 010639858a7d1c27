"""One client after the other, in this process: the plain executor that the others are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hetfl.local.executor import Executor, Job, LocalResult, LocalTask, Memory, remembering


class Sequential(Executor):
    """Runs clients one after the other, with torch's own threads inside each step; any net, any device."""

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[LocalTask], memory: Memory | None = None
    ) -> Iterator[LocalResult]:
        for task in tasks:
            yield replace(job(self.bench, remembering(task, memory)), task=task)
