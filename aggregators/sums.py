"""Weighted sums of updates in the coordinates of the global model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hetfl.entries import SHORT, Entries
from hetfl.layout import Index
from hetfl.part import DERIVED, Part
from hetfl.submodel import add, prefix_index, take
from hetfl.updates import SparseUpdate, Update


class Sums(ABC):
    """The sums of a round's updates, which are added one by one."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._like = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}

    @staticmethod
    def like(tensors: Mapping[str, Tensor]) -> Sums:
        """Return sums for tensors with the names, shapes, dtypes and devices of ``tensors``."""
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
        few = sum(tensor.numel() for tensor in tensors.values()) <= SHORT
        return FlatSums(tensors) if few and len(kinds) == 1 else TensorSums(tensors)

    def fit(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these sums are for tensors with the names, shapes, dtypes and devices of ``tensors``."""
        return self._like == {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}

    @abstractmethod
    def clear(self) -> None:
        """Set all sums to zero."""

    @abstractmethod
    def add(self, update: Update, index: Part, weight: float) -> None:
        """Add a weighted update at the entries of its index."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name, without a copy: a change of them changes the sums."""


class FlatSums(Sums):
    """Sums of a small model in one vector: an update is added in one call, of a sparse one only the sent entries."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._whole = Part(prefix_index(tensors, tensors, "a"))
        self._sums_D = next(iter(tensors.values())).new_zeros(self._whole.layout.size)
        self._views = self._whole.layout.views(self._sums_D)

    def clear(self) -> None:  # noqa: D102
        self._sums_D.zero_()

    def add(self, update: Update, index: Part, weight: float) -> None:  # noqa: D102
        # The cached value also holds the whole part, so that no other part can get its id().
        _, entries = index.derived(id(self._whole), lambda: (self._whole, Entries(index, self._whole)))
        if isinstance(update, SparseUpdate) and not update.exact.numel():
            positions = entries.positions(self._sums_D)[update.indices.to(self._sums_D.device)]
            self._sums_D.index_add_(0, positions, update.values.to(self._sums_D), alpha=weight)
        else:
            self._sums_D.index_add_(0, entries.positions(self._sums_D), update.whole().to(self._sums_D), alpha=weight)

    def tensors(self) -> dict[str, Tensor]:  # noqa: D102
        return self._views


class TensorSums(Sums):
    """Sums with one tensor each."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._sums = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        self._stale = set(self._sums)  # names of sums that have old or no values
        self._views: dict[int, tuple[Part, dict[str, Tensor]]] = {}  # of the sums, by index
        # As long as the longest sparse update.
        self._zeros_D = next(iter(tensors.values()), torch.empty(0)).new_zeros(0)

    def clear(self) -> None:  # noqa: D102
        self._stale = set(self._sums)

    def add(self, update: Update, index: Part, weight: float) -> None:  # noqa: D102
        with self._spread(update) as vector_D:
            self._add(index.layout.views(index.spread(vector_D)), index, weight)

    def _add(self, parts: Mapping[str, Tensor], index: Part, weight: float) -> None:
        if id(index) not in self._views:
            if len(self._views) == DERIVED:
                self._views.clear()
            # The cached value also holds the index, so that no other index can get its id().
            self._views[id(index)] = index, _views(self._sums, index)
        _, views = self._views[id(index)]
        for name, part in parts.items():
            view, total = views.get(name), self._sums[name]
            if name in self._stale:
                self._stale.remove(name)
                if view is not None and view.shape == total.shape:  # one pass fewer than zeros and a sum
                    torch.mul(part, weight, out=total)
                    continue
                total.zero_()
            if view is None:
                add(total, index[name], part, weight)
            else:
                view.add_(part, alpha=weight)

    @contextmanager
    def _spread(self, update: Update) -> Iterator[Tensor]:
        """Yield all entries of an update; a sparse one is written into a reused vector of zeros, then erased."""
        if not isinstance(update, SparseUpdate):
            yield update.whole().to(self._zeros_D)
            return
        size = update.length + update.exact.numel()
        if self._zeros_D.numel() < size:
            self._zeros_D = self._zeros_D.new_zeros(size)
        vector_D = self._zeros_D[:size]
        indices, exact = update.indices.to(vector_D.device), vector_D[update.length :]
        try:
            vector_D.index_copy_(0, indices, update.values.to(vector_D))
            exact.copy_(update.exact)
            yield vector_D
        finally:
            vector_D.index_fill_(0, indices, 0.0)
            exact.zero_()

    def tensors(self) -> dict[str, Tensor]:  # noqa: D102
        for name in self._stale:
            self._sums[name].zero_()
        self._stale = set()
        return self._sums


def _views(sums: Mapping[str, Tensor], index: Index) -> dict[str, Tensor]:
    """Return by name the entries of the sums that an index addresses, for entries that are views."""
    views = {name: entry for name, entry in index.items() if all(isinstance(part, slice) for part in entry)}
    return {name: take(sums[name], entry) for name, entry in views.items()}
