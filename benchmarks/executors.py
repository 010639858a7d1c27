"""The executors that benchmarks compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hetfl.local import Auto, Executor, Sequential, Stacked, Workers
from hetfl.local.by_shape import ByShape


def executors(workers: int, cohort: int) -> dict[str, Callable[[], Executor]]:
    """Return the executors by name; executors with processes come first.

    Args:
        workers: number of processes.
        cohort: number of clients of a round, all of one level, which the processes divide evenly.
    """
    return {
        f"Workers({workers})": partial(Workers, workers),
        f"Workers({workers}, Stacked)": lambda: Workers(workers, Stacked(-(-cohort // workers))),
        f"Workers({workers}, Stacked(1))": lambda: Workers(workers, Stacked(1)),
        "default": lambda: Workers(workers, ByShape(workers)),
        "Auto": partial(Auto, num_workers=workers),
        "Sequential": Sequential,
        "Stacked": Stacked,
    }
