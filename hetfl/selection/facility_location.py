r"""Facility location: choose few rows that lie close to all columns.

.. math:: G(S) = \sum_{k \in V} \min_{i \in S} d(i, k)

The decrease of G by a further row is monotone and submodular, so greedy choice reaches at least 1 − 1/e of the best
possible decrease (Nemhauser et al., Mathematical Programming 1978). Here the decrease is counted from a row that lies
as far from every column as any does; C is the number of rows to choose from, V that of the columns.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def objective(distances_CV: Tensor, chosen: list[int]) -> float:
    """Return G of some chosen rows: the sum over columns of the distance to the nearest of them."""
    return float(distances_CV[chosen].amin(0).sum())


def lazy_greedy(distances_CV: Tensor, count: int) -> list[int]:
    """Return ``count`` rows (or all), each the one that lowers G most, ties by number (Minoux, 1978).

    A row's gain only falls as others are chosen: a row whose old gain is below another's present one needs no look.
    """
    nearest_V = _beyond(distances_CV)
    heap = [(-_gain(row_V, nearest_V), row, 0) for row, row_V in enumerate(distances_CV)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        _, row, looked = heapq.heappop(heap)
        if looked < len(chosen):
            heapq.heappush(heap, (-_gain(distances_CV[row], nearest_V), row, len(chosen)))
            continue
        chosen.append(row)
        nearest_V = torch.minimum(nearest_V, distances_CV[row])
    return chosen


def stochastic_greedy(distances_CV: Tensor, count: int, sample: int, generator: torch.Generator) -> list[int]:
    """Return ``count`` rows (or all), each the best of ``sample`` drawn among those left, ties by number.

    Mirzasoleiman et al., "Lazier Than Lazy Greedy" (AAAI 2015, arXiv 1409.7938). With ``sample`` of at least C it is
    plain greedy.
    """
    nearest_V = _beyond(distances_CV)
    left = list(range(len(distances_CV)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        drawn = torch.randperm(len(left), generator=generator)[:sample].sort().values
        gains = {left[i]: _gain(distances_CV[left[i]], nearest_V) for i in drawn.tolist()}
        best = max(gains, key=lambda row: gains[row])  # of several the first: the lowest number
        left.remove(best)
        chosen.append(best)
        nearest_V = torch.minimum(nearest_V, distances_CV[best])
    return chosen


def _beyond(distances_CV: Tensor) -> Tensor:
    """Return per column the distance of a row that is nowhere closer than any other, shape (V,)."""
    farthest = distances_CV.amax() if distances_CV.numel() else distances_CV.new_zeros(())
    return farthest.expand(distances_CV.shape[1])


def _gain(distances_V: Tensor, nearest_V: Tensor) -> float:
    # One row at a time: the same order of summation everywhere, so that equal gains are equal to the bit.
    return float((nearest_V - distances_V).clamp(min=0).sum())
