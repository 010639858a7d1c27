"""Progress per simulated second of assignments that learn, beside rules that do not, on three toy fleets.

    python benchmarks/bandit.py --seeds 4

A client of speed s takes (1 - x) / s + 0.1 seconds if it leaves out the share x of the model, times noise of 5 % on the
first term; its update is then worth 1 - 1.2 x^3, times noise of 10 %. A round lasts as long as its slowest client, and
makes the mean of its values as progress. Values fall to ``1 / shrink`` of that in the eyes of the policy during a run.
With ``drift``, the speeds of the clients are reversed in the middle of the run, and forecasts are those before it.
Prints a line per policy: progress per second on each fleet, as a ratio to random levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import torch

from hetfl.fleet import (
    EUCB,
    Device,
    Devices,
    DiscountedUCB,
    Dynamic,
    EqualTime,
    LearningAssignment,
    LevelAssignment,
    OneForAll,
    Outlook,
)
from hetfl.fleet.numbers import FloatArray
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from hetfl.value import Value

FLEETS: dict[str, tuple[float, ...]] = {
    "3 equal": (1.0, 1.0, 1.0),
    "1, 1/2, 1/4": (1.0, 0.5, 0.25),
    "ten, 0.1 to 1": tuple(np.geomspace(0.1, 1, 10).tolist()),
}
"""Speeds of the clients of three toy fleets."""
GRID = np.arange(10) / 10
"""Share of the model that each of ten levels leaves out."""
NOTHING = DenseUpdate(torch.zeros(0))


class Given(Value):
    """Values that are set from outside."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def of_round(self) -> dict[int, float]:
        """Return the values."""
        return dict(self.values)


class Toy:
    """A toy federation.

    Args:
        speeds: of the clients.
        seed: of the noise.
    """

    def __init__(self, speeds: Sequence[float], seed: int) -> None:
        self.speeds, self._random = np.array(speeds), np.random.default_rng(seed)
        self.seconds = self.progress = 0.0

    @property
    def outlook(self) -> Outlook:
        """What is known of the clients before a run; levels are named a, b, ..., the largest first."""
        seconds_LN = (1 - GRID)[:, None] / self.speeds[None, :] + 0.1
        devices = Devices.of_kinds({"device": Device()}, np.zeros(len(self.speeds), np.int64))
        return Outlook(tuple("abcdefghij"), np.arange(10, 0, -1), seconds_LN, devices)

    def round(self, drawn: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Return the seconds and the values of the clients at these levels, and add them up."""
        left_out = GRID[list(drawn)]
        seconds = (1 - left_out) / self.speeds * self._random.uniform(0.95, 1.05, len(left_out)) + 0.1
        values = (1 - 1.2 * left_out**3) * self._random.uniform(0.9, 1.1, len(left_out))
        self.seconds += seconds.max()
        self.progress += values.mean()
        return seconds, values


def per_second(
    policy: LevelAssignment,
    speeds: Sequence[float],
    seed: int,
    rounds: int = 400,
    shrink: float = 1.0,
    drift: bool = False,
) -> float:
    """Return the progress per second of a policy.

    Args:
        policy: a new assignment; one that learns has the value :class:`Given`.
        speeds: of the clients.
        seed: of the noise and of random draws.
        rounds: number of rounds.
        shrink: the first value over the last one, as the policy sees them.
        drift: whether the speeds are reversed in the middle.
    """
    toy = Toy(speeds, seed)
    policy.setup(Facts([10] * len(speeds), seed, tuple("abcdefghij")))
    policy.foresee(toy.outlook)
    for round in range(rounds):
        if drift and round == rounds // 2:
            toy.speeds = toy.speeds[::-1]
        policy.begin_round(round, 0.1)
        drawn = policy.positions(round).tolist()
        seconds, values = toy.round(drawn)
        if isinstance(policy, LearningAssignment):
            assert isinstance(policy.value, Given)
            for client, time in enumerate(seconds.tolist()):
                policy.observe(NOTHING, Part({}), Report(client, policy.names[drawn[client]], 10, 1.0, seconds=time))
            policy.value.values = dict(enumerate((values * shrink ** (-round / rounds)).tolist()))
            policy.end_round(round)
    return toy.progress / toy.seconds


POLICIES: dict[str, Callable[[], LevelAssignment]] = {
    "random levels": Dynamic,
    "the largest level": lambda: OneForAll("a"),
    "EqualTime, reference a": EqualTime,
    "EqualTime, reference d": lambda: EqualTime("d"),
    "DiscountedUCB, gap": lambda: DiscountedUCB(value=Given()),
    "DiscountedUCB, gap, reference d": lambda: DiscountedUCB(value=Given(), reference="d"),
    "DiscountedUCB, both": lambda: DiscountedUCB(reward="both", value=Given()),
    "DiscountedUCB, late_only": lambda: DiscountedUCB(reward="late_only", value=Given()),
    "DiscountedUCB, gap, scale of the round": lambda: DiscountedUCB(scale="round", value=Given()),
    "EUCB, gap": lambda: EUCB(value=Given()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--shrink", type=float, default=1.0)
    parser.add_argument("--drift", action="store_true")
    args = parser.parse_args()
    settings = {"rounds": args.rounds, "shrink": args.shrink, "drift": args.drift}
    print(f"| {'assignment':40s} | {' | '.join(FLEETS)} |")
    base: dict[str, float] = {}
    for name, make in POLICIES.items():
        cells = []
        for fleet, speeds in FLEETS.items():
            reached = mean(per_second(make(), speeds, seed, **settings) for seed in range(args.seeds))
            cells.append(f"{reached:.3f} ({reached / base.setdefault(fleet, reached):.2f})")
        print(f"| {name:40s} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
