"""Random entries of the weights for every client and round."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hetfl.part import Part
from hetfl.parts.base import PartRule
from hetfl.seeding import generator
from hetfl.submodel import parameters_of


class RandomMask(PartRule):
    """Every client holds random entries of its level's weights, drawn anew in every round, and all of the rest.

    Each entry of a weight is held with the level's density as its probability. Weights are the trained parameters of
    two and more dimensions; biases, norm layers and buffers are held whole.
    """

    masks: ClassVar[bool] = True

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        block, density = self.levels.indices[level], self.levels[level].density
        if density == 1.0:
            return block
        random = generator(self.seed, "mask", round, client)
        trained = parameters_of(self.levels.net)

        def mask(name: str, shape: tuple[int, ...]) -> Tensor:
            if name not in trained or len(shape) < 2:
                return torch.ones(shape, dtype=torch.bool)
            return torch.rand(shape, generator=random) < density

        return Part(block, torch.cat([mask(name, shape).flatten() for name, shape in block.layout.shapes.items()]))
