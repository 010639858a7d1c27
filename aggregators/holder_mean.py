"""HeteroFL's mean: every entry is averaged over the clients that hold it (ICLR 2021, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hetfl.aggregators.base import Aggregator
from hetfl.submodel import add, fixed, take
from hetfl.types import DERIVED, FixedIndex, Index, IndexEntry, Report
from hetfl.updates import Update


class HolderMean(Aggregator):
    r"""Unweighted mean over the holders of each entry.

    .. math:: \Delta_j = \frac{1}{|H_j|} \sum_{k \in H_j} u_{k,j}, \qquad H_j = \{k : j \in \text{index}_k\}

    The divisor counts who *holds* entry j, not who sent it: an entry that a sparse update leaves out is a 0 in the
    mean, else the compressor would amplify rarely sent entries. Streaming: the memory is two global models, sums and
    means, whatever the cohort.
    """

    def __init__(self) -> None:
        self._stale: set[str] = set()
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        self._views: dict[int, tuple[FixedIndex, dict[str, Tensor]]] = {}  # of the sums, by index

    def weight(self, report: Report) -> float:
        """Return the weight of a client in the mean: 1 for everyone."""
        return 1.0

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        if not _fit(self._sums, tensors):  # the pages of new vectors cost more than zeros in old ones
            self._views = {}
            self._sums = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            self._means = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        self._stale = set(self._sums)  # sums that are of another round, or never were
        # Most holders share an index entry (all clients of a level): their weights are added up per distinct entry,
        # and spread over the tensor once, at the end.
        self._weights: dict[str, dict[object, tuple[IndexEntry, float]]] = {name: {} for name in tensors}

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        weight = self.weight(report)
        first = next(iter(self._sums.values()))
        flat_D = torch.cat([update.to_dense(), update.exact]) if update.exact.numel() else update.to_dense()
        kept = fixed(index)
        self._add(kept, kept.layout.views(flat_D.to(first)), weight)
        keys = kept.derived("keys", lambda: [_key(entry) for entry in kept.values()])
        for (name, entry), key in zip(kept.items(), keys, strict=True):
            _, total = self._weights[name].get(key, (entry, 0.0))
            self._weights[name][key] = (entry, total + weight)

    def _add(self, index: FixedIndex, parts: Mapping[str, Tensor], weight: float) -> None:
        """Add a client's tensors to the sums."""
        if id(index) not in self._views:
            if len(self._views) == DERIVED:
                self._views.clear()
            # What is kept holds the index, too: no other can have its identity meanwhile.
            self._views[id(index)] = index, _views(self._sums, index)
        _, views = self._views[id(index)]
        for name, part in parts.items():
            view, total = views.get(name), self._sums[name]
            if name in self._stale:
                self._stale.remove(name)
                if view is not None and view.shape == total.shape:  # a pass less than zeros and a sum
                    torch.mul(part, weight, out=total)
                    continue
                total.zero_()
            if view is None:
                add(total, index[name], part, weight)
            else:
                view.add_(part, alpha=weight)

    def sums(self) -> dict[str, Tensor]:
        """Return the weighted sums of the round's updates."""
        for name in self._stale:
            self._sums[name].zero_()
        self._stale = set()
        return self._sums

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the mean of every tensor, and the weight of the holders of each entry.

        The means are valid until the next call.
        """
        holders = {}
        for name, total in self.sums().items():
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


def _views(sums: Mapping[str, Tensor], index: Index) -> dict[str, Tensor]:
    """Return what of the sums an index addresses, where that is a view."""
    views = {name: entry for name, entry in index.items() if all(isinstance(part, slice) for part in entry)}
    return {name: take(sums[name], entry) for name, entry in views.items()}


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
