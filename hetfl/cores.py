"""The processor cores of this process."""

from __future__ import annotations

import os

from hetfl.errors import ConfigurationError

RUNS = "HETFL_RUNS_AT_A_TIME"
"""Environment variable with the number of runs that share the cores, which ``hetfl compare --jobs`` sets."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_run() -> int:
    """Return this run's share of the usable cores, at least one: as many worker processes it has by default.

    Raises:
        ConfigurationError: the environment variable is no positive integer.
    """
    runs = os.environ.get(RUNS, "1")
    if not runs.isdecimal() or not int(runs):
        raise ConfigurationError(f"Expected a positive integer as {RUNS} but got {runs!r:.40}")
    return max(1, usable_cores() // int(runs))
