"""The forms that end a cohort first, against all assignments and all combinations, tried one by one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetfl.local.auto.probe import Form
from hetfl.local.auto.schedule import duration, last_end, quickest

HERE, PROCESSES = False, True
times = st.integers(1, 20).map(float)


@given(st.lists(times, max_size=6), st.integers(1, 3))
def test_the_schedule_is_within_four_thirds_of_the_best_assignment(groups: list[float], processes: int) -> None:
    """Graham's bound for largest first, 4/3 − 1/(3m); the schedule is never shorter than the optimum."""
    best = min(
        max(sum(g for g, p in zip(groups, places, strict=True) if p == place) for place in range(processes))
        for places in itertools.product(range(processes), repeat=len(groups))
    )
    assert best <= last_end(groups, processes) <= best * (4 / 3 - 1 / (3 * processes)) + 1e-9


def simulated(
    forms: Mapping[str, Form],
    seconds: Mapping[str, Mapping[Form, float]],
    passes: Mapping[str, Sequence[int]],
    num_workers: int,
) -> float:
    """Return the same as duration(), simulated client by client and worker by worker."""
    workers = [0.0] * (num_workers if any(form.processes for form in forms.values()) else 1)
    groups = []
    for level, clients in passes.items():
        size, left = forms[level].clients or 1, list(clients)
        parts = -(-len(left) // size)
        for part in range(parts):
            group = [left.pop(0) for _ in range(-(-len(left) // (parts - part)))]
            groups.append(sum(group) * seconds[level][forms[level]] * len(workers))
    while groups:
        largest = max(groups)
        groups.remove(largest)
        workers[workers.index(min(workers))] += largest
    return max(workers)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, dict[Form, float]], dict[str, list[int]], bool, int]:
    """Draw the seconds of forms, a cohort's passes, a place and a number of workers."""
    levels = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    every = [Form(place, clients) for place in (HERE, PROCESSES) for clients in (0, 1, 2, 4)]
    seconds = {level: {form: draw(times) for form in every} for level in levels}
    passes = {level: draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)) for level in levels}
    return seconds, passes, draw(st.booleans()), draw(st.integers(2, 4))


@given(cohorts())
def test_no_other_combination_of_forms_is_quicker(
    drawn: tuple[dict[str, dict[Form, float]], dict[str, list[int]], bool, int],
) -> None:
    seconds, passes, place, workers = drawn
    chosen = quickest(seconds, passes, place, workers)
    end = simulated(chosen, seconds, passes, workers)
    assert duration(chosen, seconds, passes, workers) == pytest.approx(end)
    assert chosen.keys() == seconds.keys()
    assert all(form.processes == place for form in chosen.values())
    for level in seconds:
        for form in seconds[level]:
            if form.processes == place:
                assert end <= simulated({**chosen, level: form}, seconds, passes, workers) + 1e-9


def test_a_small_level_is_stacked_while_a_large_level_uses_the_other_process() -> None:
    """Two clients at e: 12 s together in one process, or 10 s each in two processes, if the other one is idle."""
    one, both = Form(PROCESSES, 1), Form(PROCESSES, 2)
    seconds = {"a": {one: 10.0, both: 10.0}, "e": {one: 2.5, both: 1.5}}
    assert quickest({"e": seconds["e"]}, {"e": [2, 2]}, PROCESSES, 2) == {"e": one}
    assert quickest(seconds, {"a": [2], "e": [2, 2]}, PROCESSES, 2)["e"] == both


def test_a_level_without_clients_gets_the_form_with_the_least_time_per_sample() -> None:
    one, both = Form(PROCESSES, 1), Form(PROCESSES, 2)
    seconds = {"a": {one: 2.0, both: 1.0}, "b": {one: 1.0, both: 2.0}}
    assert quickest(seconds, {"b": [1, 1]}, PROCESSES, 2) == {"a": both, "b": one}
