"""Chooses the form of every level that minimises the time of a cohort."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from hetfl.local.auto.probe import Form
from hetfl.local.stacked.stacked import evenly

Seconds = Mapping[str, Mapping[Form, float]]
"""By level and form, seconds per sample of all processes together when all are busy."""


def quickest(
    seconds: Seconds, passes: Mapping[str, Sequence[int]], processes: bool, num_workers: int
) -> dict[str, Form]:
    """Return each level's form, all in one place, such that no change of one level's form would end the cohort earlier.

    One process trains all clients of a group. So it may pay to divide a large level into more groups and a small level
    into fewer, if the other levels have work for the free processes: the best form of a level depends on the others.

    Args:
        seconds: the time of each form of each level.
        passes: by level, the samples that each of the cohort's clients passes through the net. A level without clients
            gets the form with the least time per sample.
        processes: the place: whether worker processes train, or this process.
        num_workers: number of worker processes.
    """
    candidates = {level: [form for form in times if form.processes == processes] for level, times in seconds.items()}
    chosen = {level: min(forms, key=seconds[level].__getitem__) for level, forms in candidates.items()}

    def end(forms: Mapping[str, Form]) -> float:
        return duration(forms, seconds, passes, num_workers)

    while True:
        best = min(({**chosen, level: form} for level, forms in candidates.items() for form in forms), key=end)
        if not end(best) < end(chosen):
            return chosen
        chosen = best


def duration(
    forms: Mapping[str, Form], seconds: Seconds, passes: Mapping[str, Sequence[int]], num_workers: int
) -> float:
    """Return how long a cohort's training takes, in seconds.

    Args:
        forms: by level, all in one place.
        seconds: the time of each form of each level.
        passes: by level, the samples that each of the cohort's clients passes through the net.
        num_workers: number of worker processes.
    """
    processes = num_workers if next(iter(forms.values())).processes else 1
    groups = []
    for level, clients in passes.items():
        form = forms[level]
        groups += [sum(part) * seconds[level][form] * processes for part in evenly(clients, max(form.clients, 1))]
    return last_end(groups, processes)


def last_end(groups: Iterable[float], processes: int) -> float:
    """Return the time at which all groups are done, if each idle process takes the largest waiting group.

    Args:
        groups: the seconds of each group.
        processes: number of processes.

    >>> last_end([3, 3, 2, 2, 2], processes=2)
    7.0
    """
    ends = [0.0] * processes
    for group in sorted(groups, reverse=True):
        heapq.heapreplace(ends, ends[0] + group)
    return max(ends)
