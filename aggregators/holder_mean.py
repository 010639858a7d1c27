"""HeteroFL's mean: every entry is averaged over the clients that hold it (ICLR 2021, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from hetfl.aggregators.base import Aggregator
from hetfl.aggregators.sums import Sums
from hetfl.arguments import choice
from hetfl.entries import add_holders
from hetfl.layout import Index, IndexEntry
from hetfl.part import DERIVED, Part, part_of
from hetfl.submodel import add
from hetfl.types import Report
from hetfl.updates import Update

Denominator = Literal["holders", "cohort"]
"""The clients whose weights the divisor adds up: the holders of an entry, or all."""


class HolderMean(Aggregator):
    r"""Unweighted mean over the holders of each entry.

    .. math:: \Delta_j = \frac{1}{|H_j|} \sum_{k \in H_j} u_{k,j}, \qquad H_j = \{k : j \in \text{index}_k\}

    With ``denominator: cohort`` the divisor is the number of all clients whose updates were accepted, holders or not.
    The step of an entry is then smaller, the fewer clients hold it. This is FedMP's residual recovery (R2SP, Jiang et
    al., ICDE 2022): the server fills up each client's sub-model with its own values before the mean. An entry without
    holders keeps its value with either divisor.

    The divisor counts the clients that *hold* entry j, not those that sent it: an entry that a sparse update leaves out
    counts as 0. Otherwise the compressor would amplify rarely sent entries. Updates are added one by one: the memory is
    that of two global models, for sums and means, and of a vector as long as the longest sparse update, for any size of
    the cohort. With masks it is one model more, for the holders of each entry.

    Args:
        denominator: ``holders``: the mean is over the holders of an entry; ``cohort``: over all clients.

    Raises:
        ConfigurationError: ``denominator`` is neither of them.
    """

    def __init__(self, denominator: Denominator = "holders") -> None:
        self.denominator = choice("denominator", denominator, Denominator)
        self._sums: Sums | None = None
        self._means: dict[str, Tensor] = {}
        # Many clients have the same index, or the same entry of it (all clients of a level). So weights are added up
        # per distinct entry, and written into the tensor once, at the end.
        self._by_index: dict[int, tuple[Part, float]] = {}
        self._by_entry: dict[str, dict[object, tuple[IndexEntry, float]]] = {}
        self._by_mask: dict[str, Tensor] = {}  # weights of holders with a mask, entry by entry
        self._total = 0.0  # weight of all clients
        self._frozen: dict[str, Tensor] = {}  # zeros, by name of a frozen parameter

    def weight(self, report: Report) -> float:
        """Return the weight of a client in the mean: 1 for every client."""
        return 1.0

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._frozen = frozen_zeros(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in self._frozen}
        if self._sums is None or not self._sums.fit(tensors):  # reuse vectors: new memory pages are slower
            self._sums = Sums.like(tensors)
            self._means = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        self._sums.clear()
        self._by_index, self._by_entry, self._by_mask = {}, {name: {} for name in tensors}, {}
        self._total = 0.0

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        weight, kept = self.weight(report), part_of(index)
        assert self._sums is not None
        self._sums.add(update, kept, weight)
        self._total += weight
        if kept.mask_D is not None:
            self._by_mask = self._by_mask or {name: torch.zeros_like(mean) for name, mean in self._means.items()}
            add_holders(self._by_mask, kept, weight)
            return
        _, total = self._by_index.get(id(kept), (kept, 0.0))
        self._by_index[id(kept)] = kept, total + weight
        if len(self._by_index) == DERIVED:
            self._weights()

    def sums(self) -> dict[str, Tensor]:
        """Return the weighted sums of the round's updates."""
        assert self._sums is not None
        return self._sums.tensors()

    def scale(self, factor: float) -> None:
        """Multiply the present sums, and the weights in them, by a factor."""
        for total in self.sums().values():
            total.mul_(factor)
        self._by_entry = {
            name: {key: (entry, weight * factor) for key, (entry, weight) in weights.items()}
            for name, weights in self._weights().items()
        }
        for count in self._by_mask.values():
            count.mul_(factor)
        self._total *= factor

    def _weights(self) -> dict[str, dict[object, tuple[IndexEntry, float]]]:
        """Return by name the distinct index entries of holders, with their total weights."""
        for index, weight in self._by_index.values():
            keys = index.derived("keys", partial(_keys, index))
            for (name, entry), key in zip(index.items(), keys, strict=True):
                _, total = self._by_entry[name].get(key, (entry, 0.0))
                self._by_entry[name][key] = (entry, total + weight)
        self._by_index = {}
        return self._by_entry

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the mean of every tensor, and the weight of the holders of each entry.

        The next call overwrites the means.
        """
        holders, weights = {}, self._weights()
        for name, total in self.sums().items():
            entries, mean = list(weights[name].values()), self._means[name]
            held = _spread(entries, total)
            if self._by_mask:
                held = held + self._by_mask[name]
            holders[name] = held.expand_as(total)
            divisor = held if self.denominator == "holders" else torch.full_like(held, self._total)
            divisor = divisor.masked_fill(held == 0, math.inf)
            if total.dim() == 0 or self._by_mask:
                torch.div(total, divisor, out=mean)
                continue
            for rows in _uniform_rows([entry for entry, _ in entries], len(total)):
                # One contiguous row of divisors for all rows: the division is then as fast as the memory.
                row = divisor[rows][:1].expand(1, *total.shape[1:]).contiguous()
                torch.div(total[rows], row, out=mean[rows])
        return {**self._means, **self._frozen}, {**holders, **self._frozen}


def frozen_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return by name the steps of frozen parameters, zeros that take no memory.

    Frozen parameters get no update: a sum of them would take as much memory as a large base.
    """
    frozen = {name for name, each in tensors.items() if isinstance(each, nn.Parameter) and not each.requires_grad}
    return {name: tensors[name].new_zeros(()).expand(tensors[name].shape) for name in frozen}


def _spread(entries: Sequence[tuple[IndexEntry, float]], like: Tensor) -> Tensor:
    """Return the sum of the entries' weights, in a shape that expands to that of ``like``.

    Dimensions after the second that every entry covers completely, such as those of kernels, have size 1.
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
    """Return parts of the first dimension such that the same entries hold all rows of a part."""
    cuts = {0, size}
    for entry in entries:
        part = entry[0]
        cuts.update((part.start, part.stop) if isinstance(part, slice) else torch.cat([part, part + 1]).tolist())
    return [slice(start, stop) for start, stop in pairwise(sorted(cuts))]


def _keys(index: Index) -> list[object]:
    # A slice becomes a range: as the pair (0, 2) it would equal the positions 0 and 2.
    return [
        tuple(range(part.start, part.stop) if isinstance(part, slice) else tuple(part.tolist()) for part in entry)
        for entry in index.values()
    ]
