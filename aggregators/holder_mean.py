"""HeteroFL's mean: every entry is averaged over the clients that hold it (ICLR 2021, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hetfl.aggregators.base import Aggregator
from hetfl.submodel import add, index_layout
from hetfl.types import Index, IndexEntry, Report
from hetfl.updates import Update


class HolderMean(Aggregator):
    r"""Unweighted mean over the holders of each entry.

    .. math:: \Delta_j = \frac{1}{|H_j|} \sum_{k \in H_j} u_{k,j}, \qquad H_j = \{k : j \in \text{index}_k\}

    The divisor counts who *holds* entry j, not who sent it: an entry that a sparse update leaves out is a 0 in the
    mean, else the compressor would amplify rarely sent entries. Streaming: the memory is one global model, whatever the
    cohort.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    def weight(self, report: Report) -> float:
        """Return the weight of a client in the mean: 1 for everyone."""
        return 1.0

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        if _fit(self._sums, tensors):  # the pages of new vectors cost more than zeros in old ones
            for total in self._sums.values():
                total.zero_()
        else:
            self._sums = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            self._means = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        # Most holders share an index entry (all clients of a level): their weights are added up per distinct entry,
        # and spread over the tensor once, at the end.
        self._weights: dict[str, dict[object, tuple[IndexEntry, float]]] = {name: {} for name in tensors}

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        weight = self.weight(report)
        first = next(iter(self._sums.values()))
        flat_D = torch.cat([update.to_dense(), update.exact]) if update.exact.numel() else update.to_dense()
        views = index_layout(index).views(flat_D.to(first))
        for name, entry in index.items():
            add(self._sums[name], entry, views[name], weight)
            key = _key(entry)
            _, total = self._weights[name].get(key, (entry, 0.0))
            self._weights[name][key] = (entry, total + weight)

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the mean of every tensor, and the weight of the holders of each entry.

        The means are valid until the next call.
        """
        holders = {}
        for name, total in self._sums.items():
            entries, mean = list(self._weights[name].values()), self._means[name]
            held = _spread(entries, total)
            holders[name] = held.expand_as(total)
            divisor = held.masked_fill(held == 0, math.inf)
            if total.dim() == 0:
                torch.div(total, divisor, out=mean)
                continue
            for rows in _uniform_rows([entry for entry, _ in entries], len(total)):
                # A row of divisors for all of them, and no shorter than theirs: division at the speed of the memory.
                row = divisor[rows][:1].expand(1, *total.shape[1:]).contiguous()
                torch.div(total[rows], row, out=mean[rows])
        return dict(self._means), holders


def _fit(sums: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether sums have the names, shapes, dtypes and devices of tensors."""
    return sums.keys() == tensors.keys() and all(
        (sums[name].shape, sums[name].dtype, sums[name].device) == (tensor.shape, tensor.dtype, tensor.device)
        for name, tensor in tensors.items()
    )


def _spread(entries: Sequence[tuple[IndexEntry, float]], like: Tensor) -> Tensor:
    """Return the weights of entries added up, in a shape that expands to that of ``like``.

    Dimensions after the second that all entries have whole, as those of kernels, have size 1.
    """
    whole = [
        dim > 1 and all(isinstance(entry[dim], slice) and entry[dim] == slice(0, size) for entry, _ in entries)
        for dim, size in enumerate(like.shape)
    ]
    count = like.new_zeros([1 if one else size for one, size in zip(whole, like.shape, strict=True)])
    for entry, weight in entries:
        add(count, tuple(slice(0, 1) if one else part for one, part in zip(whole, entry, strict=True)), weight)
    return count


def _uniform_rows(entries: Sequence[IndexEntry], size: int) -> list[slice]:
    """Return parts of the first dimension; all rows of a part are held by the same entries."""
    cuts = {0, size}
    for entry in entries:
        part = entry[0]
        cuts.update((part.start, part.stop) if isinstance(part, slice) else torch.cat([part, part + 1]).tolist())
    return [slice(start, stop) for start, stop in pairwise(sorted(cuts))]


def _key(entry: IndexEntry) -> object:
    # A range for a slice: the pair (0, 2) would collide with the positions 0 and 2.
    return tuple(range(part.start, part.stop) if isinstance(part, slice) else tuple(part.tolist()) for part in entry)
