"""Which form of every level ends a cohort first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from hetfl.local.auto.probe import Form
from hetfl.local.stacked.stacked import evenly

Seconds = Mapping[str, Mapping[Form, float]]
"""By level and form: seconds per sample of all processes together, each at work."""


def quickest(
    seconds: Seconds, passes: Mapping[str, Sequence[int]], processes: bool, num_workers: int
) -> dict[str, Form]:
    """Return each level's form, all in one place, such that no other form of one level would end the cohort earlier.

    Clients that are trained together are trained by one process. So a large level is worth dividing and a small one is
    not, where others have work for the processes that are left: what is best for a level depends on the other ones.

    Args:
        seconds: what each form of each level takes.
        passes: by level, the samples that each of a cohort's clients passes through the net. A level of which there are
            none gets the form that takes the least for a sample.
        processes: the place: worker processes, or this one.
        num_workers: number of worker processes.
    """
    own = {level: [form for form in times if form.processes == processes] for level, times in seconds.items()}
    chosen = {level: min(forms, key=seconds[level].__getitem__) for level, forms in own.items()}

    def end(forms: Mapping[str, Form]) -> float:
        return duration(forms, seconds, passes, num_workers)

    while True:
        best = min(({**chosen, level: form} for level, forms in own.items() for form in forms), key=end)
        if not end(best) < end(chosen):
            return chosen
        chosen = best


def duration(
    forms: Mapping[str, Form], seconds: Seconds, passes: Mapping[str, Sequence[int]], num_workers: int
) -> float:
    """Return how long a cohort's training takes, in seconds.

    Args:
        forms: by level, all in one place.
        seconds: what each form of each level takes.
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
    """Return when all groups are done if a process that has nothing to do takes the largest of those that are left.

    >>> last_end([3, 3, 2, 2, 2], processes=2)
    7.0
    """
    ends = [0.0] * processes
    for group in sorted(groups, reverse=True):
        heapq.heapreplace(ends, ends[0] + group)
    return max(ends)
