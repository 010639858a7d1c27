"""Entries of masks that move between layers, so that the densities of the layers follow from training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetfl.pruning.densities import Masks, largest


def redistributed(
    values: Mapping[str, Tensor], masks: Masks, share: float, random: torch.Generator
) -> dict[str, Tensor]:
    """Return masks without the smallest of all held values, and with as many random entries that were not held.

    All tensors compete, so their densities change, while the number of held entries of all together stays. The largest
    value of each tensor stays. Entries that are dropped do not return at once.

    Args:
        values: of the entries, by tensor.
        masks: the held entries, by the same names in the same order.
        share: of the held entries that is exchanged, in [0, 1]; fewer, if there are not as many others.
        random: chooses the entries that begin to be held.
    """
    sizes = [mask.numel() for mask in masks.values()]
    held = torch.cat([mask.flatten() for mask in masks.values()])
    flat = torch.cat([values[name].detach().abs().flatten().cpu().double() for name in masks])
    flat = flat.masked_fill(~held, -1.0)
    first = torch.cat(
        [largest(each, 1) & mask for each, mask in zip(flat.split(sizes), held.split(sizes), strict=True)]
    )
    total = int(held.count_nonzero())
    count = min(int(share * total), total - int(first.count_nonzero()), len(held) - total)
    kept = largest(flat.masked_fill(first, torch.inf), total - count)
    chances = torch.rand(len(held), generator=random, dtype=torch.float64).masked_fill(held, -1.0)
    grown = (kept | largest(chances, count)).split(sizes)
    return {name: each.view(masks[name].shape) for name, each in zip(masks, grown, strict=True)}
