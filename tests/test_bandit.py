"""Assignments that learn, against values computed by hand, a plain bandit in loops, and toy federations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bandit import FLEETS, NOTHING, Given, Toy, per_second

from hetfl.errors import ConfigurationError
from hetfl.fleet import (
    EUCB,
    ByDevice,
    DiscountedUCB,
    Dynamic,
    EqualTime,
    Fixed,
    LearningAssignment,
    OneForAll,
)
from hetfl.fleet.credits import Credits, bounds, next_scale, normalised, rewards
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.value import LossDrop
from tests.bandit_cases import PlainBandit, outlook, plain_rewards, play, ready

FALLING = [[4.0, 2.0], [2.0, 1.0], [1.0, 0.5]]
"""Seconds of two clients at three levels."""
BANDITS: list[Callable[..., LearningAssignment]] = [DiscountedUCB, EUCB]


def credits_of(*pulls: tuple[int, float], levels: int, discount: float) -> Credits:
    credits, client = Credits(1, levels), np.array([0])
    for level, reward in pulls:
        credits.decay(client, discount)
        credits.add(client, np.array([level]), np.array([reward]))
    return credits


# --- the rule ---


def test_discounted_sums_and_bounds_are_those_computed_by_hand() -> None:
    known = credits_of((0, 1.0), (1, 0.5), (2, 0.2), (0, 0.8), levels=3, discount=0.9)
    assert known.pulls_NL[0] == pytest.approx([1.729, 0.81, 0.9])
    one = np.ones(1)
    means = bounds(known.pulls_NL, known.earned_NL, one, 0.0)[0]
    assert means == pytest.approx([0.884326, 0.5, 0.2], abs=1e-6)
    full = bounds(known.pulls_NL, known.earned_NL, one, 1.0)[0]
    assert full - means == pytest.approx([1.195316, 1.746376, 1.656758], abs=1e-6)
    assert full.argmax() == 1


def test_a_first_pull_counts_one_and_has_no_bonus() -> None:
    """The log of a sum below 1 would be negative, and its root NaN."""
    known = credits_of((0, 1.0), levels=1, discount=0.3)
    assert known.pulls_NL[0, 0] == 1.0
    assert bounds(known.pulls_NL, known.earned_NL, known.top_N, 1.0)[0, 0] == 1.0
    faded = np.full((1, 1), 0.9)
    assert bounds(faded, faded, np.ones(1), 1.0)[0, 0] == 1.0


def test_rewards_divide_values_by_gaps_with_a_relative_floor() -> None:
    seconds, values = np.array([1.0, 2.0, 3.0]), np.array([0.02, 0.03, -0.01])
    in_time = np.zeros(3, np.bool_)
    earned = rewards(seconds, normalised(values, 1.0), in_time, "gap", 0.05)
    assert earned == pytest.approx([0.02, 0.3, 0.0])
    assert rewards(60 * seconds, normalised(values, 1.0), in_time, "gap", 0.05) == pytest.approx(earned / 60)
    both = rewards(seconds, np.ones(3), in_time, "both", 0.05)
    assert both == pytest.approx([1 / (1 + 0.5), 1 / (0.1 + 1.0), 1 / (1 + 1.5)])
    late_only = rewards(seconds, np.ones(3), in_time, "late_only", 0.05)
    assert late_only == pytest.approx([1 / 0.5, 1 / 1.0, 1 / 2.5])


def test_late_clients_earn_nothing_and_count_with_the_deadline() -> None:
    late = np.array([False, False, True])
    earned = rewards(np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 0.0]), late, "gap", 0.05)
    assert earned == pytest.approx([1 / 2, 1 / 1, 0.0])
    unknown = rewards(np.array([1.0, 2.0, math.nan]), np.array([1.0, 1.0, 0.0]), late, "gap", 0.05)
    assert unknown == pytest.approx([1 / 0.5, 1 / 0.5, 0.0])


def test_values_are_shares_of_a_scale_that_fades() -> None:
    nan = math.nan
    assert normalised(np.array([2.0, nan, -1.0, 1.0]), 4.0) == pytest.approx([0.5, 0.25, 0.0, 0.25])
    assert normalised(np.array([nan, nan]), 0.0).tolist() == [1.0, 1.0]
    assert normalised(np.array([-1.0, -2.0]), 0.0).tolist() == [0.0, 0.0]
    scale = next_scale(0.0, np.array([2.0, nan]), "trend")
    assert scale == 2.0
    assert next_scale(scale, np.array([1.0]), "trend") == pytest.approx(1.9)
    assert next_scale(scale, np.array([3.0, -1.0]), "trend") == 3.0
    assert next_scale(scale, np.array([1.0]), "round") == 1.0
    assert next_scale(scale, np.array([]), "trend") == pytest.approx(1.9)


@pytest.mark.parametrize("name", FLEETS)
def test_draws_equal_those_of_a_plain_bandit(name: str) -> None:
    toy, speeds = Toy(FLEETS[name], 3), FLEETS[name]
    known = toy.outlook
    limit = min(known.seconds_LN[0])
    starts = [next((level for level in range(10) if column[level] <= limit), 9) for column in known.seconds_LN.T]
    plain = [PlainBandit(start, 10, 0.9, 0.3) for start in starts]
    policy = ready(DiscountedUCB(0.9, 0.3, value=Given()), known)
    scale = 0.0
    for round in range(200):
        drawn = [bandit.draw() for bandit in plain]
        seconds, values = (each.tolist() for each in toy.round(drawn))
        values[round % len(speeds)] -= 0.8  # at times negative
        assert play(policy, round, dict(enumerate(seconds)), dict(enumerate(values))) == drawn
        scale = max(0.95 * scale, *values)
        for bandit, level, reward in zip(plain, drawn, plain_rewards(seconds, values, scale), strict=True):
            bandit.credit(level, reward)


def test_levels_are_tried_from_that_of_equal_time_outwards() -> None:
    seconds = [[8.0, 1.0], [4.0, 0.8], [2.0, 0.6], [1.0, 0.4], [0.5, 0.2]]
    known = outlook(seconds, [50, 40, 30, 20, 10])
    policy = ready(DiscountedUCB(value=Given()), known)
    drawn = [play(policy, round, {0: 1.0, 1: 1.0}) for round in range(5)]
    assert [pair[0] for pair in drawn] == [3, 2, 4, 1, 0]  # client 0 equals the fastest client's time at level d
    assert [pair[1] for pair in drawn] == [0, 1, 2, 3, 4]
    assert play(ready(DiscountedUCB(value=Given(), reference="c"), known), 0, {}) == [4, 2]


def test_order_and_ties_go_by_size_and_not_by_position() -> None:
    """Levels may be listed in any order behind the first."""
    known = outlook([[4.0], [1.0], [2.0]], [30, 10, 20])
    policy = ready(DiscountedUCB(value=Given(), coefficient=0.0), known)
    assert [play(policy, round, {0: 1.0})[0] for round in range(4)] == [0, 2, 1, 0]  # equal rewards: the largest


def test_a_level_is_tried_again_once_it_is_forgotten() -> None:
    policy = ready(DiscountedUCB(discount=0.5, coefficient=0.0, value=Given()), outlook([[4.0], [2.0]], [20, 10]))
    times = [4.0, 1.0]  # level b earns more
    drawn = []
    for round in range(16):
        level = policy.draw(round)[0]
        drawn.append(play(policy, round, {0: times[level]})[0])
    first = drawn.index(0, 1)
    assert first == next(n for n in range(1, 16) if 0.5 ** (n - 1) < 1e-3)
    assert drawn[1:first] == [1] * (first - 1)


@pytest.mark.parametrize(("forget", "kept"), [("pulls", 1.0), ("rounds", 0.9**5)])
def test_a_client_that_is_away_forgets_nothing_unless_rounds_count(forget: Any, kept: float) -> None:
    policy = ready(DiscountedUCB(0.9, forget=forget, value=Given()), outlook(FALLING, [30, 20, 10]))
    play(policy, 0, {0: 1.0, 1: 1.0})
    for round in range(1, 6):
        play(policy, round, {1: 1.0})
    assert policy.learnt()["pulls_NL"].numpy()[0].max() == pytest.approx(kept)


@pytest.mark.parametrize("make", BANDITS)
def test_a_late_client_is_booked_and_a_failed_one_is_not(make: Callable[..., LearningAssignment]) -> None:
    policy = ready(make(value=Given()), outlook([[4.0] * 4, [2.0] * 4, [1.0] * 4], [30, 20, 10], deadline=9.0))
    drawn = play(policy, 0, {0: 1.0, 1: 2.0}, missed={2: True, 3: False})
    state = {name: each.numpy() for name, each in policy.learnt().items()}
    assert state["pulls_NL"].sum(axis=1).tolist() == [1, 1, 1, 0]
    assert state["pulls_NL"][2, drawn[2]] == 1
    assert state["earned_NL"][2:].sum() == 0
    assert state["earned_NL"][0].sum() == pytest.approx(1 / (4.0 - 1.0))  # the mean time is (1 + 2 + 9) / 3
    assert policy.columns()["assignment/mean_gap"] == pytest.approx((3 + 2 + 5) / 3 / 4)


def test_clients_begin_with_what_others_with_the_same_device_know() -> None:
    seconds = np.array([[4.0, 4.0, 4.0], [2.0, 2.0, 2.0]])
    policy = ready(DiscountedUCB(share="device", value=Given()), outlook(seconds, [20, 10], kinds=[0, 0, 1]))
    for round in range(2):
        play(policy, round, {0: [8.0, 1.0][policy.draw(round)[0]]})
    assert policy.draw(2).tolist() == [1, 1, 0]  # client 1 was never asked; client 2 has another device
    credits = policy.learnt()
    pulls, earned = credits["pulls_NL"].numpy(), credits["earned_NL"].numpy()
    prior_pulls, prior_earned, top = policy._known()
    assert prior_pulls[1].tolist() == [1.0, 1.0]
    assert prior_earned[1] == pytest.approx(earned[0] / pulls[0])
    assert top[1] == credits["top_N"][0]


def test_levels_above_what_a_device_holds_are_never_drawn() -> None:
    for make in BANDITS:
        policy = ready(
            make(value=Given(), largest=Fixed({"a": 1, "b": 1, "c": 1})), outlook([[1.0] * 3] * 3, [3, 2, 1])
        )
        drawn = np.array([play(policy, round, {0: 1.0, 1: 1.0, 2: 1.0}) for round in range(30)])
        assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2], [1, 2], [2]]


# --- intervals ---


def test_intervals_are_split_at_the_draw_until_each_has_one_level() -> None:
    levels = 6
    policy = ready(EUCB(value=Given()), outlook([[6.0 - level] for level in range(levels)], range(6, 0, -1)))
    cuts = {0}
    for round in range(40):
        interval = policy._intervals()[0].tolist()
        (drawn,) = play(policy, round, {0: 1.0})
        inside = [level for level in range(levels) if interval[level] == interval[drawn]]
        if len(inside) > 1:
            cuts.add(drawn + 1 if drawn == inside[0] else drawn)
        assert {level for level in range(levels) if policy.learnt()["begins"][0, level]} == cuts
    assert cuts == set(range(levels))


def test_an_interval_is_drawn_by_the_bound_of_all_its_levels() -> None:
    policy = ready(
        EUCB(coefficient=0.3, value=Given()), outlook([[float(9 - level)] for level in range(5)], range(5, 0, -1))
    )
    generator = np.random.default_rng(0)
    for round in range(60):
        state = {name: each.numpy()[0] for name, each in policy.learnt().items()}
        begins = np.flatnonzero(state["begins"]).tolist()
        intervals = [list(range(low, high)) for low, high in zip(begins, [*begins[1:], 5], strict=True)]

        def bound(levels: list[int], state: dict[str, Any] = state) -> float:
            pulls, earned = state["pulls_NL"][levels].sum(), state["earned_NL"][levels].sum()
            if pulls < 1e-3:
                return math.inf
            log = math.log(max(state["pulls_NL"].sum(), 1.0))
            return float(earned / pulls / (state["top_N"] or 1.0) + 0.3 * math.sqrt(2 * log / pulls))

        best = max(intervals, key=bound)  # the first of equal ones, which has the larger levels
        assert play(policy, round, {0: float(generator.uniform(1, 5))}, {0: float(generator.uniform())})[0] in best


# --- rules that do not learn ---


def test_equal_time_gives_the_largest_level_that_is_as_fast_as_the_fastest_client() -> None:
    seconds = np.array([[8.0, 2.0, 40.0], [4.0, 1.5, 20.0], [2.0, 1.0, 10.0]])
    known = outlook(seconds, [30, 20, 10])
    assert ready(EqualTime(), known).levels(0) == ["c", "a", "c"]  # none of client 2's levels takes at most 2 s
    assert ready(EqualTime("b"), known).levels(0) == ["c", "b", "c"]
    assert ready(EqualTime(deadline=4.0), known).levels(3) == ["b", "a", "c"]
    assert ready(EqualTime(deadline=4.0), known).levels(0) == ready(ByDevice(4.0), known).levels(0)


def test_one_level_for_all_is_constant_or_drawn_in_every_round() -> None:
    known = outlook([[1.0] * 5] * 3, [30, 20, 10])
    assert ready(OneForAll("b"), known).levels(7) == ["b"] * 5
    drawn = ready(OneForAll(), known, seed=1)
    rounds = [set(drawn.levels(round)) for round in range(300)]
    assert all(len(levels) == 1 for levels in rounds)
    counts = [rounds.count({level}) for level in "abc"]
    assert max(counts) - min(counts) < 60
    assert drawn.levels(5) == ready(OneForAll(), known, seed=1).levels(5)


# --- values ---


def observed(
    value: LossDrop, round: int, reports: dict[int, list[tuple[float, float | None, int]]]
) -> dict[int, float]:
    value.begin_round(round, 0.1)
    for client, of_client in reports.items():
        for loss, initial, samples in of_client:
            value.observe(NOTHING, Part({}), Report(client, "a", samples, loss, initial_loss=initial))
    values = dict(value.of_round())
    value.end_round(round)
    return values


def test_loss_drops_are_since_the_last_report_or_since_the_start() -> None:
    value = LossDrop()
    value.setup(Facts([10] * 3))
    assert observed(value, 0, {0: [(2.0, None, 10)], 1: [(3.0, None, 10)]}) == {}
    assert observed(value, 1, {0: [(1.5, None, 10)], 2: [(9.0, None, 10)]}) == {0: 0.5}
    assert observed(value, 2, {0: [(1.0, None, 10), (4.0, None, 20)], 1: [(3.5, None, 10)]}) == {0: -1.5, 1: -0.5}
    again = LossDrop()
    again.setup(Facts([10] * 3))
    again.load_state_dict(value.state_dict())
    assert observed(again, 3, {2: [(8.0, None, 5)]}) == {2: 1.0}
    start = LossDrop("start")
    assert observed(start, 0, {0: [(2.0, 2.5, 10), (1.0, 2.5, 30)]}) == {0: pytest.approx(1.25)}
    with pytest.raises(ConfigurationError, match=r"Expected an aggregator that asks .* for LossDrop\(since='start'\)"):
        observed(start, 1, {0: [(2.0, None, 10)]})


# --- what it reaches ---


@pytest.mark.parametrize("make", [DiscountedUCB, lambda **rest: DiscountedUCB(reward="both", **rest)])
@pytest.mark.parametrize("name", FLEETS)
def test_a_bandit_makes_more_progress_per_second_than_random_levels(make: Any, name: str) -> None:
    speeds = FLEETS[name]
    bandit = np.mean([per_second(make(value=Given()), speeds, seed) for seed in range(2)])
    random = np.mean([per_second(Dynamic(), speeds, seed) for seed in range(2)])
    assert bandit > 1.4 * random
