"""Indices of entries of named tensors, and the layout of tensors in one flat vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

IndexEntry = tuple[slice | Tensor, ...]
"""Entries of one global tensor: per dimension a slice(start, stop) or a sorted LongTensor of positions."""

Index = Mapping[str, IndexEntry]
"""By name of a parameter (then of a float buffer), the entries of the global tensor that a sub-model holds."""


@dataclass(frozen=True)
class Layout:
    """The positions of named tensors in one flat vector, in order and without gaps.

    Args:
        shapes: per name, the tensor's shape; the order is the order in the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of named tensors, in their order."""
        return Layout({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries per tensor."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes.values())

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each tensor's first entry in the flat vector."""
        return tuple(itertools.accumulate(self.sizes, initial=0))[:-1]

    @cached_property
    def size(self) -> int:
        """Length D of the flat vector."""
        return sum(self.sizes)

    def views(self, flat_D: Tensor) -> dict[str, Tensor]:
        """Return by name a view of ``flat_D``, shape (..., D), with the leading dimensions and the tensor's shape."""
        parts = flat_D.split(self.sizes, dim=-1)
        return {name: self.shaped(part, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    @staticmethod
    def shaped(part: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a view of one tensor's part of a vector, shape (..., size), with its shape."""
        return part.view((*part.shape[:-1], *shape))

    @staticmethod
    def flat(tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the part, shape (..., size), that :meth:`shaped` turns into a tensor."""
        return tensor.reshape((*tensor.shape[: tensor.dim() - len(shape)], math.prod(shape)))

    def reordered(self, flat_D: Tensor, given: Layout) -> Tensor:
        """Return a vector in this layout, converted from another layout of the same tensors.

        Args:
            flat_D: the vector in the layout ``given``, shape (..., D).
            given: its layout.
        """
        if given == self:
            return flat_D
        reordered_D = torch.empty_like(flat_D)
        torch._foreach_copy_(list(self.views(reordered_D).values()), list(given.views(flat_D).values()))
        return reordered_D


def iter_entries(index: Index) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each name of an index with the shape of its entries."""
    for name, entry in index.items():
        yield name, entry_shape(entry)


def entry_shape(entry: IndexEntry) -> tuple[int, ...]:
    """Return the shape of the entries that an index entry addresses."""
    return tuple(part.stop - part.start if isinstance(part, slice) else part.numel() for part in entry)
