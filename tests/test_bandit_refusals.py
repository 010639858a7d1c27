"""Settings of assignments that do not fit, and rounds that cannot be replayed, are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from bandit import Given

from hetfl.errors import ConfigurationError
from hetfl.fleet import EUCB, DiscountedUCB, EqualTime, OneForAll
from hetfl.value import LossDrop
from tests.bandit_cases import outlook, play, ready

FALLING = [[4.0, 2.0], [2.0, 1.0], [1.0, 0.5]]
"""Seconds of two clients at three levels."""


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DiscountedUCB, {"discount": 0.0}, r"Expected discount in \(0, 1\] for DiscountedUCB but got 0.0"),
        (EUCB, {"discount": 1.1}, r"Expected discount in \(0, 1\] for EUCB but got 1.1"),
        (DiscountedUCB, {"coefficient": -1.0}, "Expected coefficient of at least 0 .* but got -1.0"),
        (EUCB, {"floor": 0.0}, "Expected floor above 0 for EUCB but got 0.0"),
        (DiscountedUCB, {"reward": "late"}, "reward of DiscountedUCB to be gap, both or late_only but got 'late'"),
        (EUCB, {"scale": "none"}, "Expected scale of EUCB to be trend or round but got 'none'"),
        (DiscountedUCB, {"forget": "seconds"}, "forget of DiscountedUCB to be pulls or rounds but got 'seconds'"),
        (DiscountedUCB, {"share": "all"}, "Expected share of DiscountedUCB to be client or device but got 'all'"),
        (DiscountedUCB, {"largest": EUCB()}, "that does not learn as largest of DiscountedUCB but got EUCB"),
        (LossDrop, {"since": "epoch"}, "Expected since of LossDrop to be report or start but got 'epoch'"),
        (EqualTime, {"reference": "a", "deadline": 3.0}, "a reference or a deadline for EqualTime but got both"),
        (EqualTime, {"deadline": 0.0}, "Expected deadline, in seconds, above 0 for EqualTime but got 0.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(kind: Callable[..., object], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("policy", "entries", "message"),
    [
        (DiscountedUCB(), [30, 30, 10], "levels of different sizes for DiscountedUCB but got a and b, .* 30 entries"),
        (EUCB(), [30, 20, 20], "levels of different sizes for EUCB but got b and c"),
        (DiscountedUCB(reference="x"), [3, 2, 1], r"reference to be a level among \['a', 'b', 'c'\] but got 'x'"),
        (EqualTime("x"), [3, 2, 1], "Expected reference to be a level among .* but got 'x'"),
        (OneForAll("x"), [3, 2, 1], "Expected level to be a level among .* but got 'x'"),
    ],
)  # fmt: skip
def test_levels_that_do_not_fit_are_refused(policy: Any, entries: list[int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ready(policy, outlook(FALLING, entries))


def test_a_single_level_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Expected at least 2 levels for EUCB to choose from but got 1"):
        ready(EUCB(), outlook([[1.0]], [5]))
    policy = ready(DiscountedUCB(value=Given()), outlook(FALLING, [30, 20, 10]))
    with pytest.raises(ConfigurationError, match="Expected finite values from Given but got nan for client 1"):
        play(policy, 0, {0: 1.0, 1: 1.0}, {0: 1.0, 1: math.nan})


def test_only_the_last_drawn_round_can_be_asked_for() -> None:
    policy = ready(DiscountedUCB(value=Given()), outlook(FALLING, [30, 20, 10]))
    first = policy.positions(0).tolist()
    with pytest.raises(ConfigurationError, match="for round 1 but got DiscountedUCB, which learns; .* is round 0"):
        policy.positions(1)
    assert play(policy, 0, {0: 1.0}) == first
    play(policy, 1, {0: 1.0})
    with pytest.raises(ConfigurationError, match="for round 0 but got DiscountedUCB"):
        policy.positions(0)
