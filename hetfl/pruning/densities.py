"""How many entries of each tensor stay, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hetfl.errors import ConfigurationError

Scope = Literal["layer", "global", "erk"]
"""Where entries compete: in their tensor, at one density for all or at that of Erdős–Rényi-kernel; or all together."""

Masks = Mapping[str, Tensor]
"""By name, which entries of a tensor are held: bool, of the tensor's shape."""


def rescaled(densities: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, float]:
    r"""Return densities of tensors in the same proportions, whose density of all together is a given one.

    .. math:: d'_l = \min(1, c\, d_l), \qquad \sum_l n_l d'_l = d \sum_l n_l

    Args:
        densities: :math:`d_l` by tensor, above 0.
        sizes: number of entries :math:`n_l` by tensor.
        density: d of all tensors together, in (0, 1].

    >>> round(rescaled({"a": 0.6, "b": 0.4}, {"a": 100, "b": 300}, 0.3)["a"], 3)
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


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    r"""Return the density of each tensor: :math:`\varepsilon \sum_i d_i / \prod_i d_i`, with dimensions d, at most 1.

    :math:`\varepsilon` makes the density of all tensors together the given one. A tensor whose density would be above 1
    is dense, and :math:`\varepsilon` is computed again for the others.

    Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets Winners, ICML 2020, section 3.

    Args:
        shapes: of the tensors, by name.
        density: of all tensors together, in (0, 1].
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    return rescaled(raw, sizes, density)


def layer_counts(scope: Scope, shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, int]:
    """Return how many entries of each tensor stay: its size times its density, rounded.

    Args:
        scope: ``layer`` or ``erk``.
        shapes: of the tensors, by name.
        density: of all tensors together, in (0, 1].

    Raises:
        ConfigurationError: no entry of a tensor would stay.
    """
    densities = erdos_renyi_kernel(shapes, density) if scope == "erk" else dict.fromkeys(shapes, density)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    counts = {name: round(densities[name] * size) for name, size in sizes.items()}
    for name, count in counts.items():
        if count < 1:
            raise ConfigurationError(
                f"Expected a density that leaves an entry of every layer but got {density:g}, which leaves none of "
                f"the {sizes[name]} entries of {name!r}"
            )
    return counts


def check_density(scope: Scope, shapes: Mapping[str, Sequence[int]], density: float) -> None:
    """Refuse a density at which masks of the best scores would have no entry of a tensor.

    Args:
        scope: where entries compete.
        shapes: of the tensors, by name.
        density: of all tensors together, in (0, 1].

    Raises:
        ConfigurationError: no entry of a tensor would stay.
    """
    if scope != "global":
        layer_counts(scope, shapes, density)
        return
    count = round(density * sum(torch.Size(shape).numel() for shape in shapes.values()))
    if count < len(shapes):
        raise ConfigurationError(
            f"Expected a density that leaves an entry of every layer but got {density:g}, which leaves {count} entries "
            f"for {len(shapes)} layers"
        )


def density_of(masks: Masks) -> float:
    """Return the share of held entries of all tensors together."""
    return sum(int(m.count_nonzero()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def largest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` largest scores, of their shape; of equal scores those at lower positions.

    Args:
        scores: of any shape, finite.
        count: number of entries to keep, from 0 to all.
    """
    flat = scores.flatten()
    if count <= 0 or count >= flat.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool)
    least = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > least
    mask[(flat == least).nonzero().squeeze(1)[: count - int(mask.count_nonzero())]] = True
    return mask.view(scores.shape).cpu()


def best(scores: Mapping[str, Tensor], scope: Scope, density: float) -> dict[str, Tensor]:
    """Return the masks of the entries with the best scores.

    With scope ``global`` the best entry of each tensor always stays, so that no layer is empty.

    Args:
        scores: by tensor; below 0 for entries that must not stay.
        scope: where entries compete.
        density: share of the entries of all tensors that stay, in (0, 1].

    Raises:
        ConfigurationError: no entry of a tensor would stay.
    """
    shapes = {name: each.shape for name, each in scores.items()}
    if scope != "global":
        counts = layer_counts(scope, shapes, density)
        return {name: largest(each, counts[name]) for name, each in scores.items()}
    check_density(scope, shapes, density)
    flat = torch.cat([each.flatten() for each in scores.values()])
    sizes = [each.numel() for each in scores.values()]
    count = round(density * flat.numel())
    first = torch.cat([largest(each, 1).flatten() for each in scores.values()])
    rest = torch.where(first.to(flat.device), torch.full_like(flat, -torch.inf), flat)
    mask = first | largest(rest, count - len(sizes))
    return {name: each.view(score.shape) for (name, score), each in zip(scores.items(), mask.split(sizes), strict=True)}


def packed(masks: Masks) -> dict[str, Tensor]:
    """Return masks as bits: uint8, eight entries in each."""
    return {name: torch.from_numpy(np.packbits(mask.flatten().numpy())) for name, mask in masks.items()}


def unpacked(bits: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return masks of tensors of some shapes, given their bits."""
    sizes = {name: torch.Size(shape) for name, shape in shapes.items()}
    flat = {n: np.unpackbits(bits[n].numpy(), count=size.numel()).astype(bool) for n, size in sizes.items()}
    return {name: torch.from_numpy(flat[name]).view(size) for name, size in sizes.items()}
