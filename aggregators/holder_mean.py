"""HeteroFL's mean: every entry is averaged over the clients that hold it (ICLR 2021, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping

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

    def weight(self, report: Report) -> float:
        """Return the weight of a client in the mean: 1 for everyone."""
        return 1.0

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
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

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: D102
        delta, holders = {}, {}
        for name, total in self._sums.items():
            count = torch.zeros_like(total)
            for entry, weight in self._weights[name].values():
                add(count, entry, weight)
            holders[name] = count
            delta[name] = torch.where(count > 0, total / count, 0.0)
        return delta, holders


def _key(entry: IndexEntry) -> object:
    # A range for a slice: the pair (0, 2) would collide with the positions 0 and 2.
    return tuple(range(part.start, part.stop) if isinstance(part, slice) else tuple(part.tolist()) for part in entry)
