"""Regions of a tensor: entries that the same clients hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from hetfl.layout import IndexEntry

MOST = 1024
"""Largest number of regions of a tensor; with more, each region would have only a few entries."""


@dataclass(frozen=True)
class Region:
    """Entries of a tensor that the same clients hold.

    Attributes:
        entry: the entries.
        holders: numbers of the clients, ascending.
    """

    entry: IndexEntry
    holders: tuple[int, ...]


def regions(shape: Sequence[int], entries: Mapping[int, IndexEntry]) -> list[Region] | None:
    """Return regions that together are all entries with a holder, each entry once.

    Nested levels make few regions: with L widths, a weight has at most L² of them.

    Args:
        shape: of the tensor.
        entries: what each client holds of the tensor, by number.

    Returns:
        None if there would be more than :data:`MOST` regions.
    """
    if not shape:
        return [Region((), tuple(sorted(entries)))] if entries else []
    groups = [_groups(size, {k: entry[dim] for k, entry in entries.items()}) for dim, size in enumerate(shape)]
    if np.prod([len(each) for each in groups], dtype=np.float64) > MOST:
        return None
    every = []
    for cell in product(*groups):
        holders = frozenset.intersection(*(held for _, held in cell))
        if holders:
            every.append(Region(tuple(part for part, _ in cell), tuple(sorted(holders))))
    return every


def _groups(size: int, parts: Mapping[int, slice | Tensor]) -> list[tuple[slice | Tensor, frozenset[int]]]:
    """Return groups of the positions of a dimension, and the clients that hold all positions of a group."""
    holders: dict[object, set[int]] = {}
    distinct: dict[object, slice | Tensor] = {}
    for number, part in parts.items():
        key = (part.start, part.stop) if isinstance(part, slice) else part.cpu().numpy().tobytes()
        distinct[key] = part
        holders.setdefault(key, set()).add(number)
    held = np.zeros((len(distinct), size), dtype=bool)
    for row, part in zip(held, distinct.values(), strict=True):
        row[part if isinstance(part, slice) else part.cpu().numpy()] = True
    patterns, group_of = np.unique(held, axis=1, return_inverse=True)
    groups = []
    for group, pattern in enumerate(patterns.T):
        if pattern.any():
            who = (holders[key] for key, one in zip(distinct, pattern, strict=True) if one)
            groups.append((_positions(np.flatnonzero(group_of.reshape(-1) == group)), frozenset[int]().union(*who)))
    return groups


def _positions(positions: np.ndarray) -> slice | Tensor:
    """Return ascending positions, as a slice if they follow each other."""
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first + 1 == len(positions) else torch.from_numpy(positions)
