"""The check of the contract of selections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.selection import Selection
from hetfl.testing.rules import check_settings, factory, random, require, through_a_file
from hetfl.types import Report
from hetfl.updates import DenseUpdate

SIZES = (30, 5, 80, 12, 7, 50, 21, 9, 64, 33)
"""Number of training samples of each client."""


class Answers:
    """A probe with random answers that depend only on a seed and a round.

    Args:
        seed: seed of the answers.
        round: the round.
        clients: ids of the clients within reach.

    Attributes:
        asked: whether one of the methods was called.
    """

    def __init__(self, seed: int, round: int, clients: Sequence[int] = range(len(SIZES))) -> None:
        self.clients, self.asked = clients, False
        drawn = torch.rand(2, len(SIZES), generator=random(1000 * seed + round), dtype=torch.float64)
        self._losses, self._seconds = drawn.tolist()

    def level(self, client: int) -> str:
        """Return the name of the only level."""
        self.asked = True
        return "a"

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the loss of each client."""
        self.asked = True
        return [self._losses[client] for client in clients]

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return the seconds of each client."""
        self.asked = True
        return [10 * self._seconds[client] for client in clients]


def check_selection(selection: Selection | Callable[[], Selection], rounds: int = 6) -> None:
    """Check that a selection follows its contract, in a federation of ten clients.

    - A cohort has only clients within reach, each at most once, and at least one if any client is within reach.
    - The cohort depends only on the seed, the round, the answers of the probe and the observed updates. A
      ``replayable`` selection depends only on the seed, the round and the reachable clients, and asks for nothing.
    - Weights are above 0. A saved and loaded state continues identically.

    Args:
        selection: an object, or a function that makes new objects; cohorts have at most ten clients.
        rounds: number of rounds that are played.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    make = factory(selection, Selection)
    check_settings(make())
    name = type(make()).__name__
    cohort = _ready(make, 0).cohort(0, Answers(0, 0, []))
    require(cohort == [], f"no client from {name} where no client is within reach", cohort)
    for seed in range(3):
        _check_rounds(make, seed, rounds)
    _check_state(make, rounds)


def _ready(make: Callable[[], Selection], seed: int, state: dict[str, Any] | None = None) -> Selection:
    policy = make()
    policy.setup(Facts(SIZES, seed, ("a",), 9))
    if state is not None:
        policy.load_state_dict(state)
    policy.begin()
    return policy


def _play(policy: Selection, round: int, seed: int, reach: Sequence[int] = range(len(SIZES))) -> list[int]:
    """Run a round: every client of the cohort sends an update, and the server refuses that of the last client."""
    policy.begin_round(round, 0.1)
    probe = Answers(seed, round, reach)
    cohort = policy.cohort(round, probe)
    name = type(policy).__name__
    require(not (policy.replayable and probe.asked), f"a replayable {name} not to use the probe", "a call of it")
    for client in cohort:
        require(policy.weight(client) > 0, f"a weight above 0 for each client of the cohort from {name}", client)
    for client in cohort[:-1]:
        size = 2 + (client + round) % 3
        index: Index = {"w": (slice(0, size),)}
        chance = random(round * 100 + client)
        report = Report(client, "a", SIZES[client], float(torch.rand((), generator=chance)), lr=0.1)
        policy.observe(DenseUpdate(torch.randn(size, generator=chance)), index, report)
    policy.end_round(round)
    return cohort


def _check_rounds(make: Callable[[], Selection], seed: int, rounds: int) -> None:
    policy, again = _ready(make, seed), _ready(make, seed)
    name = type(policy).__name__
    for round in range(rounds):
        drawn = torch.rand(len(SIZES), generator=random(7 * seed + round)) < 0.6
        reach = [client for client, within in enumerate(drawn.tolist()) if within] or [0]
        cohort = _play(policy, round, seed, reach)
        require(bool(cohort), f"a client from {name} where {len(reach)} are within reach", "none")
        other = _play(again, round, seed, reach)
        rule = f"the same cohort from two {name} of one seed with the same observations"
        require(other == cohort, rule, f"{other} and {cohort} in round {round}")
        if policy.replayable:
            alone = _ready(make, seed).cohort(round, Answers(seed, round, reach))
            rule = f"a replayable {name} to be a function of the seed and the round"
            require(alone == cohort, rule, f"{alone} and {cohort} in round {round}")


def _check_state(make: Callable[[], Selection], rounds: int) -> None:
    for before in (1, rounds - 1):
        policy = _ready(make, 0)
        name = type(policy).__name__
        for round in range(before):
            _play(policy, round, 0)
        resumed = _ready(make, 0, through_a_file(policy.state_dict(), name))
        for round in range(before, rounds + 2):
            cohort, other = _play(policy, round, 0), _play(resumed, round, 0)
            rule = f"{name} to continue from a saved state as without saving"
            require(other == cohort, rule, f"{other} and {cohort} in round {round}")
            weights = [[each.weight(client) for client in cohort] for each in (policy, resumed)]
            require(weights[0] == weights[1], rule, "other weights")
