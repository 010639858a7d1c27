r"""Facility location: chooses few rows that are close to all columns.

.. math:: G(S) = \sum_{k \in V} \min_{i \in S} d(i, k)

The decrease of G is a monotone and submodular function of S, so the greedy choice reaches at least 1 − 1/e of the
largest possible decrease (Nemhauser et al., Mathematical Programming 1978). The decrease is counted from a virtual row
whose distance to every column is the largest of all distances. C is the number of rows to choose from, V the number of
columns.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def objective(distances_CV: Tensor, chosen: list[int]) -> float:
    """Return G of the chosen rows: the sum over columns of the distance to the nearest chosen row."""
    return float(distances_CV[chosen].amin(0).sum())


def lazy_greedy(distances_CV: Tensor, count: int) -> list[int]:
    """Return ``count`` rows (or all), each the one that lowers G most, ties by number (Minoux, 1978).

    A row's gain only falls as others are chosen. So a row whose old gain is below the present gain of another row need
    not be evaluated again.
    """
    nearest_V = _beyond(distances_CV)
    heap = [(-_gain(row_V, nearest_V), row, 0) for row, row_V in enumerate(distances_CV)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        _, row, evaluated_at = heapq.heappop(heap)
        if evaluated_at < len(chosen):
            heapq.heappush(heap, (-_gain(distances_CV[row], nearest_V), row, len(chosen)))
            continue
        chosen.append(row)
        nearest_V = torch.minimum(nearest_V, distances_CV[row])
    return chosen


def stochastic_greedy(distances_CV: Tensor, count: int, sample: int, generator: torch.Generator) -> list[int]:
    """Return ``count`` rows (or all), each the best of ``sample`` rows drawn from the remaining ones, ties by number.

    Mirzasoleiman et al., "Lazier Than Lazy Greedy" (AAAI 2015, arXiv 1409.7938). With ``sample`` of at least C it is
    the plain greedy choice.
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
    """Return per column the distance of the virtual first row: the largest of all distances, shape (V,)."""
    farthest = distances_CV.amax() if distances_CV.numel() else distances_CV.new_zeros(())
    return farthest.expand(distances_CV.shape[1])


def _gain(distances_V: Tensor, nearest_V: Tensor) -> float:
    # One row at a time: with the same order of summation, equal gains are equal bit for bit.
    return float((nearest_V - distances_V).clamp(min=0).sum())
