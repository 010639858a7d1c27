"""Densities of layers that follow from training: entries move between layers, and the layers' densities are kept."""

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


def rescaled(densities: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, float]:
    r"""Return densities of tensors in the same proportions, whose density of all together is a given one.

    .. math:: d'_l = \min(1, c\, d_l), \qquad \sum_l n_l d'_l = d \sum_l n_l

    Args:
        densities: :math:`d_l` by tensor, above 0.
        sizes: number of entries :math:`n_l` by tensor.
        density: d of all tensors together, in (0, 1].

    >>> rescaled({"a": 0.6, "b": 0.4}, {"a": 100, "b": 300}, 0.3)["a"]
    0.4
    >>> rescaled({"a": 0.9, "b": 0.1}, {"a": 10, "b": 10}, 0.75)
    {'a': 1.0, 'b': 0.5}
    """
    dense: set[str] = set()
    while len(dense) < len(densities):
        rest = [name for name in densities if name not in dense]
        wanted = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = wanted / sum(densities[name] * sizes[name] for name in rest)
        above = {name for name in rest if scale * densities[name] > 1.0}
        if not above:
            return {name: 1.0 if name in dense else scale * each for name, each in densities.items()}
        dense |= above
    return dict.fromkeys(densities, 1.0)
