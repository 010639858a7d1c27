"""Recipes: the seeds and settings that are needed to draw a random part again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def draw_positions(seed: int, held: int, of: int) -> Tensor:
    """Return ``held`` different positions below ``of``, int64, ascending: the first of a random permutation.

    Args:
        seed: 63 bits, for torch's CPU generator.
        held: number of positions to draw.
        of: number of all positions.
    """
    random = torch.Generator().manual_seed(seed)
    return torch.randperm(of, generator=random)[:held].sort().values


def draw_mask(seed: int, density: float, sizes: Sequence[int], drawn: Sequence[bool]) -> Tensor:
    """Return a random mask, bool, shape (D,), of tensors one after the other.

    Args:
        seed: 63 bits, for torch's CPU generator.
        density: the probability that an entry of a drawn tensor is held, compared in float32.
        sizes: entries of each tensor, D in total.
        drawn: whether the entries of each tensor are drawn; all entries of the others are held.
    """
    random = torch.Generator().manual_seed(seed)

    def mask(size: int) -> Tensor:
        return torch.rand(size, generator=random, dtype=torch.float32) < density  # for any default dtype

    masks = [mask(s) if each else torch.ones(s, dtype=torch.bool) for s, each in zip(sizes, drawn, strict=True)]
    return torch.cat(masks)


@dataclass(frozen=True)
class MaskRecipe:
    """The arguments of :func:`draw_mask` for a part's mask.

    Attributes:
        seed: derived from the run's seed (:func:`hetfl.seeding.derive`); no other choice uses it.
        density: the probability that an entry is held.
        drawn: names of the tensors whose entries are drawn.
    """

    seed: int
    density: float
    drawn: frozenset[str]

    def mask(self, sizes: Mapping[str, int]) -> Tensor:
        """Return the mask of tensors of some sizes by name, bool, shape (D,)."""
        return draw_mask(self.seed, self.density, list(sizes.values()), [name in self.drawn for name in sizes])


@dataclass(frozen=True)
class Recipe:
    """How a part was drawn. It describes the complete part: a narrowed part has no recipe.

    Attributes:
        channels: by number of all channels, the seed of :func:`draw_positions`, derived from the run's seed.
        mask: how the mask was drawn; None: there is no drawn mask.
    """

    channels: Mapping[int, int] = field(default_factory=dict)
    mask: MaskRecipe | None = None
