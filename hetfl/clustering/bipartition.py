"""Splits clients into two groups by the directions of their updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Blocks = Mapping[str, Tensor]
"""An update in global coordinates: per tensor a leading block, with NaN at entries that the update does not cover."""

FloatMatrix = NDArray[np.float64]

Linkage = Literal["single", "complete"]
"""The distance of two groups of clients: that of their most similar (single) or least similar members (complete)."""


def similarities(updates: Sequence[Blocks]) -> FloatMatrix:
    r"""Return the cosine of the angle between every two updates, shape (S, S).

    .. math:: \alpha_{ik} = \frac{\sum_{j \in C} u_{i,j} u_{k,j}}
                                 {\sqrt{\sum_{j \in C} u_{i,j}^2} \sqrt{\sum_{j \in C} u_{k,j}^2}}

    C is the set of entries that both updates cover. The cosine is 0 if one update is zero on C, or if C is empty.

    Args:
        updates: one per client.
    """
    size = len(updates)
    products = torch.zeros(size, size, dtype=torch.float64)
    squares = torch.zeros(size, size, dtype=torch.float64)  # of row's update over the entries common with column's
    for values_SD, covered_SD in _tensors(updates):
        products += values_SD @ values_SD.T
        squares += values_SD.square() @ covered_SD.T
    lengths = (squares * squares.T).sqrt()
    cosines = torch.where(lengths > 0, products / lengths, 0.0).clamp(-1.0, 1.0)
    cosines.fill_diagonal_(1.0)
    return cosines.numpy()


def norms(updates: Sequence[Blocks]) -> tuple[float, float]:
    """Return the norm of the mean update, each entry averaged over the clients that cover it, and the largest norm.

    Clients count equally, as in the paper, also where the aggregator weighs them by their samples.

    Args:
        updates: one per client.
    """
    of_mean, of_each = 0.0, torch.zeros(len(updates), dtype=torch.float64)
    for values_SD, covered_SD in _tensors(updates):
        of_mean += float((values_SD.sum(0) / covered_SD.sum(0).clamp(min=1)).square().sum())
        of_each += values_SD.square().sum(1)
    return of_mean**0.5, float(of_each.max()) ** 0.5


def bipartition(cosines_SS: FloatMatrix, linkage: Linkage = "single") -> tuple[list[int], list[int]]:
    """Return the rows of two groups of clients, found by agglomerative clustering on 1 − cosine; row 0 is in the first.

    Args:
        cosines_SS: similarities, shape (S, S), of at least two clients.
        linkage: ``single`` merges the groups with the most similar members, and so minimises the largest similarity
            between the final two groups; ``complete`` merges the groups whose least similar members are most similar,
            which keeps groups compact and does not always attain this minimum.
    """
    from sklearn.cluster import AgglomerativeClustering  # with scipy and pandas, which nodes do without

    grouping = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=linkage)
    labels = grouping.fit_predict(1.0 - cosines_SS)
    rows = range(len(labels))
    return [row for row in rows if labels[row] == labels[0]], [row for row in rows if labels[row] != labels[0]]


def _tensors(updates: Sequence[Blocks]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield per tensor all clients' entries, 0 where not covered, and the covered ones as 1; float64, (S, entries)."""
    for name in dict.fromkeys(name for blocks in updates for name in blocks):
        named_blocks = [blocks[name] for blocks in updates if name in blocks]
        shape = [max(sizes) for sizes in zip(*(block.shape for block in named_blocks), strict=True)]
        values_SD = torch.full((len(updates), *shape), torch.nan, dtype=torch.float64)
        for row, blocks in enumerate(updates):
            if name in blocks:
                part = tuple(slice(size) for size in blocks[name].shape)
                values_SD[row][part] = blocks[name].double()
        covered_SD = ~values_SD.isnan()
        yield values_SD.nan_to_num_(nan=0.0).flatten(1), covered_SD.double().flatten(1)
