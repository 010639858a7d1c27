"""Federated Dropout: random channels for every client and round."""

from __future__ import annotations

from torch import Tensor

from hetfl.part import Part
from hetfl.parts.base import PartRule
from hetfl.recipe import Recipe, draw_positions
from hetfl.seeding import derive


class RandomChannels(PartRule):
    """Every client holds random channels, as many as its level has, drawn anew for each client and round.

    Layers with equal numbers of channels get the same channels.

    Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements, 2018 (arXiv 1812.07210), section 3.
    """

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        seeds: dict[int, int] = {}

        def channels(of: int, held: int) -> Tensor:
            seeds[of] = derive(self.seed, "channels", round, client, of)
            return draw_positions(seeds[of], held, of)

        return Part(self.of_channels(level, channels), recipe=Recipe(channels=seeds))
