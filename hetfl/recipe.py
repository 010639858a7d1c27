"""How the random choices of a part were drawn: what is needed to draw them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def draw_positions(seed: int, held: int, of: int) -> Tensor:
    """Return ``held`` different positions below ``of``, int64, rising: the first of a permutation that a seed names.

    Args:
        seed: 63 bits, of torch's CPU generator.
        held: how many are held.
        of: how many there are.
    """
    random = torch.Generator().manual_seed(seed)
    return torch.randperm(of, generator=random)[:held].sort().values


def draw_mask(seed: int, density: float, sizes: Sequence[int], drawn: Sequence[bool]) -> Tensor:
    """Return a mask, bool, shape (D,), of tensors one after the other.

    Args:
        seed: 63 bits, of torch's CPU generator.
        density: the probability that an entry of a drawn tensor is held, compared in float32.
        sizes: entries of each tensor, D in all.
        drawn: whether the entries of each tensor are drawn; all entries of the others are held.
    """
    random = torch.Generator().manual_seed(seed)

    def mask(size: int) -> Tensor:
        return torch.rand(size, generator=random, dtype=torch.float32) < density  # whatever the default type

    masks = [mask(s) if each else torch.ones(s, dtype=torch.bool) for s, each in zip(sizes, drawn, strict=True)]
    return torch.cat(masks)


@dataclass(frozen=True)
class MaskRecipe:
    """What :func:`draw_mask` is given for a part's mask.

    Attributes:
        seed: a digest of the run's (:func:`hetfl.seeding.derive`), of which no other choice is drawn.
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
    """How a part was drawn. It describes the whole part: one that was narrowed has none.

    Attributes:
        channels: by the number of channels that there are, the seed of :func:`draw_positions`; a digest, too.
        mask: how the mask was drawn; None: it was not, or there is none.
    """

    channels: Mapping[int, int] = field(default_factory=dict)
    mask: MaskRecipe | None = None
