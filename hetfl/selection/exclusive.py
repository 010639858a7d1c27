"""Exclusive selection: only clients that can hold the whole model take part."""

from __future__ import annotations

from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import uniformly


class Exclusive(Selection):
    """m of the reachable clients whose level is the largest, every subset equally likely.

    The baseline of DepthFL and FedRolex in which clients that cannot train the whole model are excluded. In a round
    without a client of the largest level within reach, nobody takes part and the model stays as it is.
    """

    def setup(self, facts: Facts) -> None:
        """Set the clients' training-set sizes, the seed and the largest level.

        Raises:
            ConfigurationError: the cohort is larger than the number of clients.
        """
        super().setup(facts)
        self._largest = facts.levels[0]

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        able = [client for client in probe.clients if probe.level(client) == self._largest]
        return uniformly(able, self.clients_per_round, generator(self.seed, "selection", round))
