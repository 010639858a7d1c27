"""The positions of a part's entries in the flat vector of a larger part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.layout import Index, IndexEntry, entry_shape
from hetfl.part import index_layout, part_of
from hetfl.submodel import add, extent, put, relative, take


class Entries:
    """The positions of a part's entries in the flat vector of a whole part, to read and write them there.

    If the vector is short or the part has a mask, all entries are read by their positions in one call; otherwise tensor
    by tensor.

    Args:
        index: the entries to read and write; a part of ``whole``.
        whole: the part whose entries, held or not, the vector has.
    """

    def __init__(self, index: Index, whole: Index) -> None:
        layout, places = index_layout(whole), _places(index, whole)
        self._mask_D = part_of(index).mask_D
        everything = [(place.start, place.stop, place.entry) for place in places] == [(0, layout.size, None)]
        self.whole = everything and self._mask_D is None
        self._size, self._places = layout.size, places
        self._scattered = self._mask_D is not None or (len(places) > 1 and layout.size <= SHORT)
        self._positions: Tensor | None = None

    def take(self, vector_D: Tensor) -> Tensor:
        """Return the entries of a vector, a view if they are contiguous in it."""
        return vector_D.index_select(0, self.positions(vector_D)) if self._scattered else self._parts(vector_D)

    def put(self, vector_D: Tensor, values: Tensor) -> None:
        """Write the entries of a vector."""
        if self._scattered:
            vector_D.index_copy_(0, self.positions(vector_D), values)
            return
        for place, given in zip(self._places, values.split([place.size for place in self._places]), strict=True):
            within = place.within(vector_D)
            if place.entry is None:
                within.copy_(given)
            else:
                put(within, place.entry, given.view(entry_shape(place.entry)))

    def positions(self, vector_D: Tensor) -> Tensor:
        """Return the positions of the entries in a vector, int64, on its device."""
        if self._positions is None:
            positions = self._parts(torch.arange(self._size))
            self._positions = positions if self._mask_D is None else positions[self._mask_D.to(positions.device)]
        self._positions = self._positions.to(vector_D.device)
        return self._positions

    def _parts(self, vector_D: Tensor) -> Tensor:
        parts = []
        for place in self._places:
            within = place.within(vector_D)
            parts.append(within if place.entry is None else take(within, place.entry).reshape(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


SHORT = 1 << 15
"""Largest vector for which positions are cached: they take at most 256 KiB for each pair of index and whole."""


@dataclass(frozen=True)
class _Place:
    """Entries of a flat vector: those at ``entry`` of one tensor in it, or without ``entry`` a contiguous range.

    Attributes:
        start: where the tensor or the range begins.
        stop: where the tensor or the range ends.
        size: number of the entries.
        shape: of the tensor.
        entry: the entries, in the tensor's coordinates; None: all from ``start`` to ``stop``.
    """

    start: int
    stop: int
    size: int
    shape: tuple[int, ...] = ()
    entry: IndexEntry | None = None

    def within(self, vector_D: Tensor) -> Tensor:
        """Return the view that contains the entries: the range, or the tensor in its shape."""
        view = vector_D[self.start : self.stop]
        return view if self.entry is None else view.view(self.shape)


def _places(index: Index, whole: Index) -> list[_Place]:
    layout, places = index_layout(whole), list[_Place]()
    tensors = dict(zip(layout.shapes, zip(layout.offsets, layout.sizes, strict=True), strict=True))
    for (name, entry), size in zip(index.items(), index_layout(index).sizes, strict=True):
        offset, length = tensors[name]
        inner = None if entry is whole[name] else relative(entry, whole[name])
        if inner is not None and any(
            not isinstance(part, slice) or (part.start, part.stop) != (0, has)
            for part, has in zip(inner, layout.shapes[name], strict=True)
        ):
            places.append(_Place(offset, offset + length, size, layout.shapes[name], inner))
        elif places and places[-1].entry is None and places[-1].stop == offset:
            start = places.pop().start
            places.append(_Place(start, offset + length, offset + length - start))
        else:
            places.append(_Place(offset, offset + length, length))
    return places


def gather_flat(tensors: Mapping[str, Tensor], index: Index) -> Tensor:
    """Return the entries of a part as one flat vector, shape (D,)."""
    return part_of(index).packed(torch.cat([take(tensors[name], entry).reshape(-1) for name, entry in index.items()]))


def add_holders(counts: Mapping[str, Tensor], index: Index, weight: float = 1.0) -> None:
    """Add a weight to the counts of a part's entries in place; tensors without a count are skipped."""
    part = part_of(index)
    masks = {} if part.mask_D is None else part.layout.views(part.mask_D)
    for name, entry in part.items():
        if name in counts:
            count = counts[name]
            add(count, entry, masks[name].to(count) if name in masks else 1, weight)


def blocks_of(vector_D: Tensor, index: Index) -> dict[str, Tensor]:
    """Return a vector's entries as blocks in global coordinates on the CPU, NaN at entries outside the part.

    Args:
        vector_D: the entries of the part's first tensors; tensors after the vector's end are left out.
        index: positions of the entries.
    """
    part, blocks, position = part_of(index), dict[str, Tensor](), 0
    masks = {} if part.mask_D is None else part.layout.views(part.mask_D)
    for (name, entry), size in zip(part.items(), part.held.sizes, strict=True):
        if position == vector_D.numel():  # float buffers follow, and are not in the vector
            break
        held = vector_D[position : position + size].cpu()
        values = held.new_full(part.layout.shapes[name], math.nan)
        values[masks[name].cpu() if name in masks else ...] = held if name in masks else held.view(values.shape)
        blocks[name] = values.new_full(extent(entry), math.nan)
        put(blocks[name], entry, values)
        position += size
    return blocks
