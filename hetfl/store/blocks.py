"""A client's blocks in one vector: read, written and measured in a few calls, however many tensors there are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetfl.entries import Entries
from hetfl.layout import Index, Layout
from hetfl.part import Part, part_of
from hetfl.submodel import extent

WHOLE = 1 << 16
"""Entries of a vector whose squares are taken in one call."""
PART = 1 << 15
"""Entries of a part of a longer block."""
HEAD = 1 << 10
"""Entries that are looked at first."""
LAYOUTS = 4
"""Layouts of blocks in which the place of an index is kept: in time clients have met all of their levels."""


class Blocks(Mapping[str, Tensor]):
    """Leading blocks of global tensors by name; zero outside.

    Args:
        layout: where the blocks lie in the vector.
        vector_D: on the CPU, shape (D,).
    """

    def __init__(self, layout: Layout, vector_D: Tensor) -> None:
        self.layout, self.vector_D = layout, vector_D

    @classmethod
    def of(cls, blocks: Mapping[str, Tensor], dtype: torch.dtype) -> Blocks:
        """Return the same blocks in one vector of a dtype."""
        if isinstance(blocks, Blocks):
            return blocks if blocks.vector_D.dtype == dtype else cls(blocks.layout, blocks.vector_D.to(dtype))
        flat = [block.reshape(-1).to(dtype) for block in blocks.values()]
        return cls(Layout.of(blocks), torch.cat(flat) if flat else torch.empty(0, dtype=dtype))

    def __reduce__(self) -> tuple[type[Blocks], tuple[Layout, Tensor]]:
        """Leave the views out: copied on their own they would no longer follow the vector."""
        return Blocks, (self.layout, self.vector_D)

    @cached_property
    def _views(self) -> dict[str, Tensor]:
        return self.layout.views(self.vector_D)

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.shapes)

    def __len__(self) -> int:
        return len(self.layout.shapes)

    def at(self, index: Index) -> Tensor:
        """Return the entries at an index, shape (D,): a view of the vector where they are neighbours in it."""
        layout, entries = self._fitted(index)
        return entries.take(self._grown(layout))

    def replaced(self, index: Index, values_D: Tensor, outside: float = 1.0, *, reuse: bool = False) -> Blocks:
        """Return blocks with other values at an index; those outside of it are multiplied by ``outside``.

        Args:
            index: where.
            values_D: the values, shape (D,); copied.
            outside: factor.
            reuse: write into the memory of these blocks, unless they have to grow.
        """
        layout, entries = self._fitted(index)
        same = layout.shapes == self.layout.shapes
        if entries.whole and not (reuse and same):
            return Blocks(layout, values_D.clone())
        if values_D.untyped_storage().data_ptr() == self.vector_D.untyped_storage().data_ptr():
            values_D = values_D.clone()  # read here, perhaps at other entries
        written = self if same and reuse else Blocks(layout, self.vector_D.clone() if same else self._grown(layout))
        if outside != 1 and not entries.whole:
            written.vector_D.mul_(outside)
        entries.put(written.vector_D, values_D)
        return written

    def are_zero(self) -> bool:
        """Return whether all entries are zero; as a rule the first ones tell."""
        return not (bool(self.vector_D[:HEAD].any()) or bool(self.vector_D.any()))

    def squared_norm(self) -> float:
        """Return Σ x² in float64, the same bits for any number of threads and any order of the blocks.

        The squares of a short vector are summed block by block in one call. No thread shares a part of a long one with
        another, which takes less time for each entry, too; every part is a copy, as a dot product's bits depend on
        where in memory its factors begin.
        """
        if self.vector_D.numel() <= WHOLE:
            filled = [offset for offset, size in zip(self.layout.offsets, self.layout.sizes, strict=True) if size]
            squares = self.vector_D.double().square().numpy()
            return math.fsum(np.add.reduceat(squares, filled).tolist()) if filled else 0.0
        parts = (part.to(torch.float64, copy=True) for block in self.values() for part in block.flatten().split(PART))
        return math.fsum(float(torch.dot(part, part)) for part in parts)

    def _fitted(self, index: Index) -> tuple[Layout, Entries]:
        """Return the layout of these blocks grown as far as an index reaches, and where the index lies in it."""
        kept = part_of(index)
        known = kept.derived("blocks", dict[tuple[Any, ...], tuple[Layout, Entries]])
        shapes = tuple(self.layout.shapes.items())
        if shapes not in known:
            if len(known) == LAYOUTS:
                del known[next(iter(known))]
            known[shapes] = _fitted(kept, self.layout)
        return known[shapes]

    def _grown(self, layout: Layout) -> Tensor:
        """Return the vector with zeros up to a layout."""
        if layout is self.layout or layout.shapes == self.layout.shapes:
            return self.vector_D
        grown_D = self.vector_D.new_zeros(layout.size)
        for name, block in layout.views(grown_D).items():
            if name in self:
                block[tuple(slice(size) for size in self[name].shape)] = self[name]
        return grown_D


def _fitted(index: Part, layout: Layout) -> tuple[Layout, Entries]:
    shapes = dict(layout.shapes)
    for name, entry in index.items():
        shape = extent(entry)
        shapes[name] = tuple(max(sizes) for sizes in zip(shapes.get(name, shape), shape, strict=True))
    grown = Layout(shapes) if shapes != layout.shapes else layout
    on_cpu = {name: tuple(p if isinstance(p, slice) else p.cpu() for p in entry) for name, entry in index.items()}
    whole = {name: tuple(slice(0, size) for size in shape) for name, shape in shapes.items()}
    return grown, Entries(Part(on_cpu, index.mask_D), whole)
