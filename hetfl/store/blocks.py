"""A client's blocks in one vector, so that reads, writes and norms take a few calls for any number of tensors."""

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
"""Largest number of entries whose squares are computed in one call."""
PART = 1 << 15
"""Entries in a part of a longer block."""
HEAD = 1 << 10
"""Entries that a search for a non-zero value reads first."""
LAYOUTS = 4
"""Number of layouts per index for which positions are cached; a client's layout stops growing after some rounds."""


class Blocks(Mapping[str, Tensor]):
    """Leading blocks of global tensors by name; entries outside of them are zero.

    Args:
        layout: positions of the blocks in the vector.
        vector_D: the blocks' entries, on the CPU, shape (D,).
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
        """Copy without the cached views: copied views would not share memory with the copied vector."""
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
        """Return the entries at an index, shape (D,); a view of the vector if they are contiguous in it."""
        layout, entries = self._fitted(index)
        return entries.take(self._grown(layout))

    def replaced(self, index: Index, values_D: Tensor, outside: float = 1.0, *, reuse: bool = False) -> Blocks:
        """Return blocks with new values at an index; all other entries are multiplied by ``outside``.

        Args:
            index: the entries to replace.
            values_D: the values, shape (D,); copied.
            outside: factor of all other entries.
            reuse: write into the memory of these blocks, unless they have to grow.
        """
        layout, entries = self._fitted(index)
        same = layout.shapes == self.layout.shapes
        if entries.whole and not (reuse and same):
            return Blocks(layout, values_D.clone())
        if values_D.untyped_storage().data_ptr() == self.vector_D.untyped_storage().data_ptr():
            values_D = values_D.clone()  # the values are a view of the memory that is written below
        written = self if same and reuse else Blocks(layout, self.vector_D.clone() if same else self._grown(layout))
        if outside != 1 and not entries.whole:
            written.vector_D.mul_(outside)
        entries.put(written.vector_D, values_D)
        return written

    def are_zero(self) -> bool:
        """Return whether all entries are zero; reads the first ones first, which are rarely all zero."""
        return not (bool(self.vector_D[:HEAD].any()) or bool(self.vector_D.any()))

    def squared_norm(self) -> float:
        """Return Σ x² in float64, with the same bits for any number of threads and any order of the blocks.

        A short vector is summed block by block in one call. A long one is summed in parts so short that a dot product
        uses one thread, which is also faster. Each part is copied, as the bits of a dot product depend on the address
        of its factors.
        """
        if self.vector_D.numel() <= WHOLE:
            filled = [offset for offset, size in zip(self.layout.offsets, self.layout.sizes, strict=True) if size]
            squares = self.vector_D.double().square().numpy()
            return math.fsum(np.add.reduceat(squares, filled).tolist()) if filled else 0.0
        parts = (part.to(torch.float64, copy=True) for block in self.values() for part in block.flatten().split(PART))
        return math.fsum(float(torch.dot(part, part)) for part in parts)

    def _fitted(self, index: Index) -> tuple[Layout, Entries]:
        """Return the layout of these blocks enlarged to cover an index, and the index's positions in it."""
        part = part_of(index)
        cached = part.derived("blocks", dict[tuple[Any, ...], tuple[Layout, Entries]])
        shapes = tuple(self.layout.shapes.items())
        if shapes not in cached:
            if len(cached) == LAYOUTS:
                del cached[next(iter(cached))]
            cached[shapes] = _fitted(part, self.layout)
        return cached[shapes]

    def _grown(self, layout: Layout) -> Tensor:
        """Return the vector in a larger layout, with zeros at the new entries."""
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
    blocks = {name: tuple(slice(0, size) for size in shape) for name, shape in shapes.items()}
    return grown, Entries(Part(on_cpu, index.mask_D), blocks)
