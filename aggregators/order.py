"""Means of the middle of sorted values, over clients and for many entries at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

Ranks = tuple[int, int]
"""The ranks low <= r < high of sorted values, counted from 0."""


@cache
def comparators(size: int, ranks: Ranks) -> tuple[tuple[int, int], ...]:
    """Return the comparators of Batcher's odd-even merge sort that the values of some ranks depend on.

    A comparator (i, j) puts the smaller one of two values at i and the larger one at j. Knuth, The Art of Computer
    Programming, volume 3, algorithm 5.2.2M.

    Args:
        size: number of values n.
        ranks: the ranks that must be right afterwards.
    """
    network: list[tuple[int, int]] = []
    top = 1 << max(0, (size - 1).bit_length() - 1)
    step = top if size > 1 else 0
    while step:
        merge, offset, distance = top, 0, step
        while distance:
            network += [(i, i + distance) for i in range(size - distance) if i & step == offset]
            distance, merge, offset = merge - step, merge >> 1, step
        step >>= 1
    needed, kept = set(range(*ranks)), list[tuple[int, int]]()
    for pair in reversed(network):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    return tuple(reversed(kept))


def sort_rows(values_SW: Tensor, ranks: Ranks) -> list[Tensor]:
    """Sort each column; return the rows in their order, of which only those of some ranks are right.

    A sorting network takes minima and maxima of whole rows, which is several times as fast as sorting column by column.

    Args:
        values_SW: values of S clients for W entries; they are overwritten.
        ranks: the ranks that must be right.
    """
    rows, spare = list(values_SW.unbind(0)), torch.empty_like(values_SW[0])
    for low, high in comparators(len(rows), ranks):
        one, other = rows[low], rows[high]
        torch.minimum(one, other, out=spare)
        torch.maximum(one, other, out=one)
        rows[low], rows[high], spare = spare, one, other
    return rows


def middle_mean(values_SW: Tensor, ranks: Ranks) -> Tensor:
    """Return, for each column, the mean of the values of some ranks, shape (W,).

    Args:
        values_SW: values of S clients for W entries; they are overwritten.
        ranks: at least one rank below S.
    """
    low, high = ranks
    return _sum(sort_rows(values_SW, ranks)[low:high]).div_(high - low)


def middle_means(values_SW: Tensor, counts_W: Tensor, ranks: Callable[[int], Ranks]) -> Tensor:
    """Return, for each column, the mean of the values of ranks that depend on its number of values, shape (W,).

    Args:
        values_SW: values of S clients for W entries, +inf where there is none; they are overwritten.
        counts_W: number of values of each column, int64; columns without a value have mean 0.
        ranks: returns the ranks for a number of values above 0.
    """
    size = len(values_SW)
    table = torch.tensor([(0, 0), *(ranks(count) for count in range(1, size + 1))], device=values_SW.device)
    low_W, high_W = table[counts_W].unbind(1)
    total_W = torch.zeros_like(values_SW[0])
    for rank, row in enumerate(sort_rows(values_SW, (0, size))):
        total_W += torch.where((low_W <= rank) & (rank < high_W), row, 0.0)
    return total_W / (high_W - low_W).clamp(min=1)


def _sum(rows: Sequence[Tensor]) -> Tensor:
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
