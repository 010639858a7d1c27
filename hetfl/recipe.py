"""Recipes: the seeds and settings that are needed to draw a random part again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def draw_mask(seed: int, densities: Sequence[float], sizes: Sequence[int]) -> Tensor:
    """Return a random mask, bool, shape (D,), of tensors one after the other.

    Args:
        seed: 63 bits, for torch's CPU generator.
        densities: the probability that an entry of each tensor is held, compared in float32; with 1 all entries are
            held, and nothing is drawn.
        sizes: entries of each tensor, D in total.
    """
    random = torch.Generator().manual_seed(seed)

    def mask(size: int, density: float) -> Tensor:
        if density == 1.0:
            return torch.ones(size, dtype=torch.bool)
        return torch.rand(size, generator=random, dtype=torch.float32) < density  # for any default dtype

    return torch.cat([mask(size, density) for size, density in zip(sizes, densities, strict=True)])


@dataclass(frozen=True)
class MaskRecipe:
    """The arguments of :func:`draw_mask` for a part's mask.

    Attributes:
        seed: derived from the run's seed (:func:`hetfl.seeding.derive`); no other choice uses it.
        densities: the probability that an entry is held, by tensor; other tensors are held whole.
    """

    seed: int
    densities: Mapping[str, float]

    def of(self, names: Iterable[str]) -> list[float]:
        """Return the densities of tensors."""
        return [self.densities.get(name, 1.0) for name in names]

    def mask(self, sizes: Mapping[str, int]) -> Tensor:
        """Return the mask of tensors of some sizes by name, bool, shape (D,)."""
        return draw_mask(self.seed, self.of(sizes), list(sizes.values()))


@dataclass(frozen=True)
class Recipe:
    """How a part was drawn. It describes the complete part: a narrowed part has no recipe.

    Attributes:
        channels: by number of all channels, the seed of :func:`draw_positions`, derived from the run's seed.
        mask: how the mask was drawn; None: there is no drawn mask.
    """

    channels: Mapping[int, int] = field(default_factory=dict)
    mask: MaskRecipe | None = None
