"""Uniform selection without replacement (McMahan et al., AISTATS 2017, algorithm 1)."""

from __future__ import annotations

from typing import ClassVar

from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import uniformly


class Uniform(Selection):
    """m of the reachable clients, every subset equally likely; a function of (seed, round)."""

    replayable: ClassVar[bool] = True

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        return uniformly(probe.clients, self.clients_per_round, generator(self.seed, "selection", round))
