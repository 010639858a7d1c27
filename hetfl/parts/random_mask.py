"""Random entries of the weights for every client and round."""

from __future__ import annotations

from typing import ClassVar

from hetfl.part import Part
from hetfl.parts.base import PartRule
from hetfl.recipe import MaskRecipe, Recipe
from hetfl.seeding import derive
from hetfl.submodel import parameters_of


class RandomMask(PartRule):
    """Every client holds random entries of its level's weights, drawn anew in every round, and all other entries.

    Each entry of a weight is held with a probability of the level's density. Weights are the trained parameters of two
    and more dimensions; biases, norm layers and buffers are held whole.
    """

    masks: ClassVar[bool] = True

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        block, density = self.levels.indices[level], self.levels[level].density
        if density == 1.0:
            return block
        trained = parameters_of(self.levels.net)
        shapes = block.layout.shapes
        weights = [name for name, shape in shapes.items() if name in trained and len(shape) > 1]
        recipe = MaskRecipe(derive(self.seed, "mask", round, client), dict.fromkeys(weights, density))
        mask_D = recipe.mask(dict(zip(shapes, block.layout.sizes, strict=True)))
        return Part(block, mask_D, Recipe(mask=recipe))
