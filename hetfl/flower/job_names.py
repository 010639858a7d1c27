"""Names of the jobs that travel to nodes."""

from __future__ import annotations

from functools import partial

from hetfl.flower.messages import JobName
from hetfl.local.executor import Job
from hetfl.local.jobs import losses, statistics


def named(job: Job) -> tuple[JobName, int | None]:
    """Return the name of a job, and the number of samples per client for ``losses``; None: all."""
    if job is statistics:
        return "statistics", None
    if isinstance(job, partial) and job.func is losses:
        return "losses", job.keywords["samples"]
    raise TypeError(f"Expected statistics or losses but got {job}")
