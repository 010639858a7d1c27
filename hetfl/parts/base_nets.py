"""Split-Mix: the base nets of an ensemble that a client trains in a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.models.exits import exits_of
from hetfl.part import Part
from hetfl.parts.base import NOBODY, GradientProbe, PartRule
from hetfl.seeding import generator


class BaseNets(PartRule):
    """A client trains k of the B base nets of an ensemble, as many as its level has.

    The cohort takes its first base nets from one sequence, in which each base net occurs once in every B places, in
    random order. So all are trained, whatever the budgets. The other k - 1 are drawn without repetition. A base net is
    a block of the first dimension of every tensor: of C positions, base net b has those from bC/B to (b + 1)C/B.

    Hong, Wang, Wang, Zhou: Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization, ICLR 2022
    (arXiv 2203.09747), algorithm 1.
    """

    replayable: ClassVar[bool] = False

    def __init__(self) -> None:
        self._cohort: tuple[int, dict[int, int]] = (-1, {})  # the round, and the place of each of its clients

    def meet(self, levels: LevelSet, seed: int) -> None:
        """Set the levels and the seed.

        Raises:
            ConfigurationError: an error of the base class, or the net has no exits.
        """
        super().meet(levels, seed)
        exits = exits_of(levels.net)
        if exits is None:
            raise ConfigurationError(
                f"Expected a net of several base nets, such as hetfl.models.SplitConvNet, for BaseNets but got "
                f"{type(levels.net).__name__}"
            )
        self.count = exits

    def consult(self, round: int, cohort: Sequence[int], probe: GradientProbe) -> None:
        """Note the order of a round's cohort; clients are asked nothing."""
        self._cohort = round, {client: place for place, client in enumerate(cohort)}

    def chosen(self, held: int, round: int, client: int) -> Tensor:
        """Return the numbers of the base nets that a client trains, ascending, shape (held,)."""
        known, places = self._cohort
        place = round * len(places) + places[client] if known == round and client in places else client
        cycle, position = divmod(place, self.count)
        first = torch.randperm(self.count, generator=generator(self.seed, "base nets", cycle))[position]
        others = torch.randperm(self.count, generator=generator(self.seed, "base nets", round, client))
        return torch.cat([first.view(1), others[others != first][: held - 1]]).sort().values

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        def channels(of: int, held: int) -> slice | Tensor:
            if client == NOBODY:
                return slice(0, held)
            size = of // self.count
            blocks = size * self.chosen(held // size, round, client)
            return (blocks.view(-1, 1) + torch.arange(size)).flatten()

        return self.of_channels(level, channels)
