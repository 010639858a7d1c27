"""Rounds of assignments that learn, without a federation, and a plain bandit in loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bandit import NOTHING, Given

from hetfl.fleet import Device, Devices, LearningAssignment, LevelAssignment, Outlook
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.types import Report, Task


def outlook(seconds_LN: Any, entries: Sequence[int], deadline: float | None = None, kinds: Any = None) -> Outlook:
    """Return what is known of clients with these seconds; levels are named a, b, ..."""
    seconds_LN = np.asarray(seconds_LN, np.float64)
    kind_N = np.zeros(seconds_LN.shape[1], np.int64) if kinds is None else np.asarray(kinds)
    devices = Devices.of_kinds({f"kind {kind}": Device() for kind in range(int(kind_N.max()) + 1)}, kind_N)
    names = tuple("abcdefghijkl"[: len(entries)])
    return Outlook(names, np.asarray(entries), seconds_LN, devices, deadline)


def ready(policy: LevelAssignment, known: Outlook, seed: int = 0) -> Any:
    """Return a policy that knows its levels and clients."""
    policy.setup(Facts([10] * known.seconds_LN.shape[1], seed, known.names))
    policy.foresee(known)
    return policy


def play(
    policy: LearningAssignment,
    round: int,
    seconds: dict[int, float],
    values: dict[int, float] | None = None,
    missed: dict[int, bool] | None = None,
) -> list[int]:
    """Play a round in which some clients report after these seconds and others are missed; return what was drawn."""
    policy.begin_round(round, 0.1)
    drawn: list[int] = policy.positions(round).tolist()
    for client, time in seconds.items():
        policy.observe(NOTHING, Part({}), Report(client, policy.names[drawn[client]], 10, 1.0, seconds=time))
    for client, late in (missed or {}).items():
        policy.miss(Task(client, policy.names[drawn[client]], round, 0), late)
    if isinstance(policy.value, Given):
        policy.value.values = values or dict.fromkeys(seconds, 1.0)
    policy.end_round(round)
    return drawn


class PlainBandit:
    """Discounted UCB of one client in loops over lists; levels are numbered from the largest.

    Args:
        start: the level that is tried first.
        levels: their number.
        discount: of earlier pulls.
        coefficient: of the bound.
    """

    def __init__(self, start: int, levels: int, discount: float, coefficient: float) -> None:
        self.pulls, self.sums, self.top = [0.0] * levels, [0.0] * levels, 0.0
        self.discount, self.coefficient = discount, coefficient
        self.order = sorted(range(levels), key=lambda level: (abs(level - start), level))

    def draw(self) -> int:
        for level in self.order:
            if self.pulls[level] < 1e-3:
                return level
        log = math.log(max(sum(self.pulls), 1.0))
        best, chosen = -math.inf, -1
        for level, (pulls, total) in enumerate(zip(self.pulls, self.sums, strict=True)):
            bound = (total / (pulls * self.top) if self.top else 0.0) + self.coefficient * math.sqrt(2 * log / pulls)
            if bound > best:
                best, chosen = bound, level
        return chosen

    def credit(self, level: int, reward: float) -> None:
        self.pulls = [self.discount * pulls for pulls in self.pulls]
        self.sums = [self.discount * total for total in self.sums]
        self.pulls[level] += 1
        self.sums[level] += reward
        self.top = max(0.99 * self.top, reward)


def plain_rewards(seconds: Sequence[float], values: Sequence[float], scale: float) -> list[float]:
    """Return each client's value, as a share of a scale, over the distance of its time to the mean time."""
    mean = sum(seconds) / len(seconds)
    return [
        max(value, 0.0) / scale / max(abs(time - mean), 0.05 * mean)
        for time, value in zip(seconds, values, strict=True)
    ]
