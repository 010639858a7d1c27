"""The arithmetic of reports against slow, obvious references."""

from __future__ import annotations

import itertools
from math import isclose, isnan, log
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetfl.analysis import Run
from hetfl.report.groups import Group
from hetfl.report.matching import TOLERANCE, rows_of
from hetfl.report.series import (
    BYTES,
    GLOBAL,
    ROUNDS,
    amount_to_reach,
    band,
    best_score,
    common_budget,
    curve,
    spends,
    values_at,
)
from hetfl.report.spread import FEW, Spread, chance_apart, spread_of
from hetfl.report.wording import level_sentence

shares = st.integers(0, 100).map(lambda percent: percent / 100)
gaps = st.lists(st.integers(0, 5), min_size=1, max_size=8)
"""Uploaded bytes of each round; some rounds have 0, as when all updates are refused."""


def make_run(bytes_a_round: list[int], accuracies: list[float | None], name: str = "run") -> Run:
    totals = list(itertools.accumulate(bytes_a_round))
    accuracies = (accuracies * len(totals))[: len(totals)]
    table = {"step": range(len(totals)), "comm/up_bytes_total": totals, "val/accuracy": accuracies}
    return Run(Path(name), pd.DataFrame(table).astype("float64"))


runs = st.builds(make_run, gaps, st.lists(shares, min_size=1, max_size=8))


def value_at(run: Run, budget: float) -> float | None:
    """Return the accuracy of the last row within the budget, row by row."""
    accuracy = None
    for _, row in run.metrics.iterrows():
        if row["comm/up_bytes_total"] <= budget and not isnan(row["val/accuracy"]):
            accuracy = float(row["val/accuracy"])
    return accuracy


@given(runs, st.integers(-1, 45))
def test_the_value_at_a_budget_is_the_last_one_within_it(run: Run, budget: int) -> None:
    value = float(values_at(*curve(run, GLOBAL, BYTES), np.array([float(budget)]))[0])
    assert (None if isnan(value) else value) == value_at(run, budget)


@given(st.lists(runs, min_size=1, max_size=7))
def test_a_band_is_the_mean_and_spread_over_seeds_at_each_budget(members: list[Run]) -> None:
    made = band(members, GLOBAL, BYTES)
    totals = [run.metrics["comm/up_bytes_total"] for run in members]
    first, last = max(total.iloc[0] for total in totals), min(total.iloc[-1] for total in totals)
    points = sorted({value for total in totals for value in total if first <= value <= last})
    if made is None:
        assert not points
        return
    assert made.x.tolist() == points
    assert made.n == len(members)
    for i, point in enumerate(points):
        values = [value for run in members if (value := value_at(run, point)) is not None]
        assert len(values) == len(members)
        assert isclose(made.mean[i], mean(values), abs_tol=1e-12)
        few = len(members) < FEW
        low, high = (min(values), max(values)) if few else (mean(values) - stdev(values), mean(values) + stdev(values))
        assert isclose(made.low[i], low, abs_tol=1e-12)
        assert isclose(made.high[i], high, abs_tol=1e-12)


@given(runs, shares)
def test_a_target_is_reached_in_the_first_round_at_or_above_it(run: Run, target: float) -> None:
    rows = [row for _, row in run.metrics.iterrows() if row["val/accuracy"] >= target]
    assert amount_to_reach(run, target, BYTES) == (float(rows[0]["comm/up_bytes_total"]) if rows else None)
    assert amount_to_reach(run, target, ROUNDS) == (float(rows[0]["step"]) + 1 if rows else None)


def test_the_largest_budget_is_spent_by_all_runs_at_their_last_validation() -> None:
    long, short = make_run([2] * 5, [0.5]), make_run([1, 1, 1, 5], [0.1, 0.2, 0.3, None])
    groups = [Group("long", (long,)), Group("short", (short,))]
    assert common_budget(groups, BYTES) == 3  # the 5 bytes of the last round are not followed by a validation


def test_the_best_score_of_a_group_is_the_mean_of_the_best_scores_of_its_runs() -> None:
    first, second = make_run([1] * 4, [0.25, None, 0.75, 0.5]), make_run([1] * 3, [0.125, 0.25, 0.125])
    assert best_score(Group("g", (first, second))) == 0.5
    assert best_score(Group("g", (second,))) == 0.25


def test_a_cost_of_constant_zero_is_not_compared() -> None:
    assert not spends(Group("g", (make_run([0, 0], [0.5]),)), BYTES)
    assert spends(Group("g", (make_run([0, 1], [0.5]),)), BYTES)
    assert not spends(Group("g", (make_run([1, 1], [0.5]), make_run([0, 0], [0.5]))), BYTES)


@given(st.lists(shares, min_size=1, max_size=9))
def test_a_spread_is_the_range_of_few_values_or_their_standard_deviation(values: list[float]) -> None:
    spread = spread_of(values)
    assert spread is not None
    few = len(values) < FEW
    low, high = (min(values), max(values)) if few else (mean(values) - stdev(values), mean(values) + stdev(values))
    assert (spread.n, spread.mean, spread.low, spread.high) == pytest.approx((len(values), mean(values), low, high))
    assert spread_of([*values, None]) is None


@pytest.mark.parametrize(("one", "other"), [(2, 2), (2, 3), (3, 3), (2, 4)])
def test_the_chance_equals_a_count_of_all_rank_orders(one: int, other: int) -> None:
    """Count the rank orders of the seeds of two equal groups in which one group lies wholly above the other."""
    ranks = set(range(one + other))
    ways = [set(chosen) for chosen in itertools.combinations(ranks, one)]
    apart = sum(min(way) > max(ranks - way) or max(way) < min(ranks - way) for way in ways)
    assert chance_apart(one, other) == pytest.approx(apart / len(ways))


spreads = st.builds(
    lambda ends, n: Spread(mean(ends), min(ends), max(ends), n) if n > 1 else Spread(ends[0], ends[0], ends[0], 1),
    st.tuples(shares, shares),
    st.integers(1, 4),
)


@given(st.dictionaries(st.sampled_from("wxyz"), spreads, min_size=2))
def test_sentences_claim_an_order_exactly_where_spreads_do_not_overlap(results: dict[str, Spread]) -> None:
    sentence = level_sentence(results)
    several = {name: each for name, each in results.items() if each.n > 1}
    lower = {name for name, each in several.items() if any(each.high < other.low for other in several.values())}
    assert {name for name, each in results.items() if f"{name} with {each.shown()} is lower" in sentence} == lower
    highest = (
        len(several) > 1
        and len(lower) == len(several) - 1
        and all(
            each.low > max(several[name].high for name in lower) for name, each in several.items() if name not in lower
        )
    )
    assert (" is highest" in sentence) == highest
    assert all(name in sentence for name in results)
    assert ("There is only one run" in sentence) == (len(several) < len(results))


costs = st.dictionaries(st.sampled_from("abcd"), st.integers(50, 200).map(float), min_size=1)


@given(costs, costs)
def test_levels_are_matched_optimally(one: dict[str, float], other: dict[str, float]) -> None:
    """Try all ways to pair levels within the tolerance: most pairs first, then the smallest differences."""

    def apart(pair: tuple[str, str]) -> float:
        return abs(log(one[pair[0]] / other[pair[1]]))

    near = [pair for pair in itertools.product(one, other) if apart(pair) <= log(TOLERANCE) + 1e-12]
    ways = [
        way
        for size in range(min(len(one), len(other)) + 1)
        for way in itertools.combinations(near, size)
        if len({a for a, _ in way}) == len({b for _, b in way}) == size
    ]
    best = min(ways, key=lambda way: (-len(way), sum(map(apart, way))))
    rows = rows_of({"one": one, "other": other})
    made = [(row.levels["one"], row.levels["other"]) for row in rows if len(row.levels) == 2]
    assert len(made) == len(best)
    assert sum(map(apart, made)) == pytest.approx(sum(map(apart, best)), abs=1e-9)
    assert sorted(row.levels["one"] for row in rows if "one" in row.levels) == sorted(one)
    assert sorted(row.levels["other"] for row in rows if "other" in row.levels) == sorted(other)


@given(st.dictionaries(st.sampled_from("xyz"), costs, min_size=1))
def test_levels_of_one_row_are_within_the_tolerance(groups: dict[str, dict[str, float]]) -> None:
    for row in rows_of(groups):
        sizes = [groups[group][level] for group, level in row.levels.items()]
        assert max(sizes) / min(sizes) <= TOLERANCE * (1 + 1e-9)


@pytest.mark.parametrize(("cost", "rows"), [(125, 1), (125.01, 2), (80, 1), (79.99, 2), (100, 1)])
def test_levels_exactly_at_the_tolerance_are_in_one_row(cost: float, rows: int) -> None:
    for scale in (1e-3, 1, 7, 1e9):  # logarithms are rounded
        assert len(rows_of({"one": {"a": 100 * scale}, "other": {"x": cost * scale}})) == rows
