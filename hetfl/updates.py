"""Updates of clients: values, and the entries of the client's vector that they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from hetfl.codes import Codes
from hetfl.layout import Layout
from hetfl.permutation import chosen


@dataclass(frozen=True)
class Update(ABC):
    """A compressed vector of D entries, and an exact block of uncompressed entries.

    A subclass defines the entries that ``values`` (k,) belong to.

    Attributes:
        codes: the codes that are sent if the values are quantised; ``values`` are then the decoded codes.
        exact: entries that are sent uncompressed (float buffers, such as running statistics); often empty.
    """

    values: Tensor
    codes: Codes | None = field(default=None, kw_only=True)
    exact: Tensor = field(default_factory=lambda: torch.empty(0), kw_only=True)

    @property
    @abstractmethod
    def size(self) -> int:
        """Length D of the vector that was compressed."""

    @property
    def num_sent(self) -> int:
        """Number k of values in the message."""
        return self.values.numel()

    @abstractmethod
    def num_sent_per_tensor(self, layout: Layout) -> Tensor:
        """Return the number of sent values of each tensor: int64, shape (T,), on the CPU.

        Args:
            layout: positions of the tensors in the vector of D entries, without the exact block.

        Raises:
            ValueError: the layout is that of a vector of another length.
        """

    @abstractmethod
    def to_dense(self) -> Tensor:
        """Return the decoded vector u of D entries; entries that were not sent are 0."""

    def whole(self) -> Tensor:
        """Return the decoded vector, and the exact block after it."""
        return torch.cat([self.to_dense(), self.exact]) if self.exact.numel() else self.to_dense()

    def left_of(self, p_D: Tensor) -> Tensor:
        """Return the part of a vector p, shape (D,), that is not in this update: p − u."""
        return p_D - self.to_dense().to(p_D)

    def with_exact(self, exact: Tensor) -> Self:
        """Return the update with another exact block."""
        return replace(self, exact=exact)

    def with_values(self, values: Tensor) -> Self:
        """Return an update of the same entries with other values."""
        return replace(self, values=values, codes=None)

    def scaled(self, factor: float) -> Update:
        """Return the update with all entries, the exact block included, multiplied by a factor."""
        return self.with_values(self.values * factor).with_exact(self.exact * factor)

    def with_codes(self, codes: Codes, dtype: torch.dtype = torch.float32) -> Self:
        """Return an update of the same entries whose values are quantised; ``values`` are in ``dtype``."""
        return replace(self, values=codes.to_float().to(dtype), codes=codes)


def _require_size(layout: Layout, update: Update) -> None:
    if layout.size != update.size:
        raise ValueError(f"Expected the layout of a vector of {update.size} entries but got one of {layout.size}")


@dataclass(frozen=True)
class DenseUpdate(Update):
    """All entries: ``values`` (D,)."""

    @property
    def size(self) -> int:  # noqa: D102
        return self.values.numel()

    def num_sent_per_tensor(self, layout: Layout) -> Tensor:  # noqa: D102
        _require_size(layout, self)
        return torch.tensor(layout.sizes, dtype=torch.int64)

    def to_dense(self) -> Tensor:  # noqa: D102
        return self.values


@dataclass(frozen=True)
class SparseUpdate(Update):
    """Some entries: ``indices`` (k,) int64, strictly increasing in [0, D); ``values`` (k,); ``length`` D."""

    indices: Tensor
    length: int

    @property
    def size(self) -> int:  # noqa: D102
        return self.length

    def num_sent_per_tensor(self, layout: Layout) -> Tensor:  # noqa: D102
        _require_size(layout, self)
        borders = torch.tensor([*layout.offsets, layout.size], device=self.indices.device)
        return torch.searchsorted(self.indices, borders).diff().cpu()

    def to_dense(self) -> Tensor:  # noqa: D102
        return self.values.new_zeros(self.length).index_copy_(0, self.indices, self.values)

    def left_of(self, p_D: Tensor) -> Tensor:  # noqa: D102
        return p_D.index_add(0, self.indices, self.values.to(p_D), alpha=-1)


@dataclass(frozen=True)
class SeededUpdate(SparseUpdate):
    """Some entries that a seed chooses, so that no indices are sent.

    Attributes:
        seed: 64 bits.
        counts: number of chosen entries in each section of the vector. One section is the whole vector; several are the
            tensors of its layout.
    """

    seed: int
    counts: tuple[int, ...]

    @staticmethod
    def positions(seed: int, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Return the chosen indices, int64, shape (k,); section t uses the seed + t (modulo 2^64).

        Args:
            seed: 64 bits.
            sizes: number of entries of each section.
            counts: number of chosen entries of each section.
        """
        indices, offset = [torch.empty(0, dtype=torch.int64)], 0
        for section, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            indices.append(torch.from_numpy(chosen(size, count, (seed + section) % 2**64)) + offset)
            offset += size
        return torch.cat(indices)


@dataclass(frozen=True)
class LowRankUpdate(Update):
    r"""Tensors as products of two thin matrices: a tensor (n, ...), as a matrix (n, m), is about :math:`P Q^\top`.

    Attributes:
        values: per tensor, one after the other: P (n, r) and Q (m, r), each by rows; or the tensor itself.
        layout: the tensors.
        ranks: r per tensor; 0: the tensor itself.
    """

    layout: Layout
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:  # noqa: D102
        return self.layout.size

    @staticmethod
    def lengths(layout: Layout, ranks: Sequence[int]) -> tuple[int, ...]:
        """Return the number of values of each tensor."""
        matrices = zip(layout.shapes.values(), layout.sizes, ranks, strict=True)
        return tuple(rank * sum(matrix_shape(shape)) if rank else size for shape, size, rank in matrices)

    def num_sent_per_tensor(self, layout: Layout) -> Tensor:  # noqa: D102
        _require_size(layout, self)
        return torch.tensor(self.lengths(self.layout, self.ranks), dtype=torch.int64)

    def to_dense(self) -> Tensor:  # noqa: D102
        return self._dense_D

    def scaled(self, factor: float) -> Update:  # noqa: D102
        return DenseUpdate(self.to_dense() * factor, exact=self.exact * factor)

    @cached_property
    def _dense_D(self) -> Tensor:
        parts = self.values.split(self.lengths(self.layout, self.ranks))
        dense = [self.values.new_empty(0)]
        for part, shape, rank in zip(parts, self.layout.shapes.values(), self.ranks, strict=True):
            if rank:
                rows, columns = matrix_shape(shape)
                left, right = part.split((rows * rank, columns * rank))
                part = (left.view(rows, rank) @ right.view(columns, rank).T).flatten()
            dense.append(part)
        return torch.cat(dense)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return a tensor's shape as a matrix: the first dimension, and the product of all others.

    >>> matrix_shape((64, 3, 3, 3)), matrix_shape((10,)), matrix_shape(())
    ((64, 27), (10, 1), (1, 1))
    """
    rows = shape[0] if shape else 1
    return rows, torch.Size(shape[1:]).numel()
