"""The updates of a round that wait for each other, and their values side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hetfl.aggregators.regions import Region, regions
from hetfl.aggregators.shelf import Plain
from hetfl.layout import IndexEntry, entry_shape
from hetfl.part import Part
from hetfl.submodel import put, relative, take
from hetfl.types import Report
from hetfl.updates import SparseUpdate

WIDTH = 1 << 13
"""Entries whose values are side by side at once: a row of a client then stays in a cache of the processor."""


@dataclass(frozen=True)
class Waiting:
    """A client's update that waits for the others of its round.

    Attributes:
        update: the update.
        part: the entries that its client holds.
        report: the client's report.
    """

    update: Plain
    part: Part
    report: Report

    @property
    def places(self) -> dict[str, slice]:
        """By name of a tensor, the positions of its held entries in the vector, the exact block included."""
        return self.part.derived("places", lambda: _places(self.part))

    def is_exact(self, name: str) -> bool:
        """Return whether a tensor is a float buffer, which is in the exact block."""
        return bool(self.places[name].start >= self.update.size)

    def read(self, start: int, stop: int) -> Tensor:
        """Return entries of the vector or of the exact block; those that were not sent are 0. They are only read."""
        if start >= self.update.size:
            return self.update.exact[start - self.update.size : stop - self.update.size]
        if not isinstance(self.update, SparseUpdate):
            return self.update.values[start:stop]
        first, last = torch.searchsorted(self.update.indices, torch.tensor([start, stop])).tolist()
        dense = self.update.values.new_zeros(stop - start)
        return dense.index_copy_(0, self.update.indices[first:last] - start, self.update.values[first:last])

    def block(self, name: str) -> Tensor:
        """Return a tensor of an update without a mask, in the shape of the client's part."""
        place = self.places[name]
        return self.read(place.start, place.stop).view(entry_shape(self.part[name]))

    def whole(self, name: str) -> bool:
        """Return whether the client holds every entry of its index in a tensor: its mask leaves none out."""
        place = self.places[name]
        return bool(place.stop - place.start == math.prod(entry_shape(self.part[name])))

    def rows(self, name: str, rows: slice) -> Tensor:
        """Return some rows of a tensor, in the shape of the client's part: +inf at entries that it does not hold."""
        shape, place = entry_shape(self.part[name]), self.places[name]
        mask = None if self.part.mask_D is None else self.part.layout.views(self.part.mask_D)[name]
        counts = self.part.derived(("held rows", name), lambda: _held_rows(shape, mask))
        values = self.read(place.start + counts[rows.start], place.start + counts[rows.stop])
        if mask is None:
            return values.view(rows.stop - rows.start, *shape[1:])
        held = mask[rows].to(values.device)
        return values.new_full(held.shape, math.inf).masked_scatter_(held, values)


@dataclass(frozen=True)
class Stack:
    """The values of several clients for the same entries of a tensor.

    Attributes:
        entry: the W entries.
        holders: numbers of the S clients.
        values_SW: their values, +inf at entries that a client does not hold; a reader may overwrite them.
        counts_W: number of holders of each entry, int64; None: every client holds every entry.
    """

    entry: IndexEntry
    holders: Sequence[int]
    values_SW: Tensor
    counts_W: Tensor | None = None


def stacks(waiting: Sequence[Waiting], name: str, like: Tensor) -> Iterator[Stack]:
    """Yield the values of all held entries of a tensor, region by region and a few rows at a time.

    Args:
        waiting: the updates.
        name: of the tensor.
        like: the global tensor, for shape, dtype and device.
    """
    entries = {k: each.part[name] for k, each in enumerate(waiting) if name in each.part}
    if not like.shape:
        entries = {k: entry for k, entry in entries.items() if waiting[k].whole(name)}
    whole = all(waiting[k].whole(name) for k in entries)
    found = regions(like.shape, entries) if whole else None
    if found is None:
        yield from _ragged(waiting, name, like, list(entries))
        return
    for region in found:
        yield from _straight(waiting, name, like, region)


def _straight(waiting: Sequence[Waiting], name: str, like: Tensor, region: Region) -> Iterator[Stack]:
    """Yield the values of a region, whose holders hold all of it."""
    inner: dict[int, IndexEntry] = {}  # the region in the coordinates of a part, by id: many clients have the same one
    for k in region.holders:
        part = waiting[k].part
        inner.setdefault(id(part), relative(region.entry, part[name]))
    blocks = [(waiting[k].block(name), inner[id(waiting[k].part)]) for k in region.holders]
    for rows, room_SW in _rooms(entry_shape(region.entry), len(blocks), like):
        for row, (block, entry) in zip(room_SW, blocks, strict=True):
            some = entry and (_cut(entry[0], rows), *entry[1:])
            row.view(entry_shape(some)).copy_(take(block, some))
        yield Stack(region.entry and (_cut(region.entry[0], rows), *region.entry[1:]), region.holders, room_SW)


def _ragged(waiting: Sequence[Waiting], name: str, like: Tensor, holders: Sequence[int]) -> Iterator[Stack]:
    """Yield the values of all entries, for clients that hold different ones of them."""
    for rows, room_SW in _rooms(tuple(like.shape), len(holders), like):
        room_SW.fill_(math.inf)
        for row, k in zip(room_SW, holders, strict=True):
            entry = waiting[k].part[name]
            local, shifted = _within(entry[0], rows)
            if local.stop > local.start:
                values = waiting[k].rows(name, local).to(row)
                put(row.view(rows.stop - rows.start, *like.shape[1:]), (shifted, *entry[1:]), values)
        entry = (rows, *(slice(0, size) for size in like.shape[1:]))
        yield Stack(entry, holders, room_SW, (room_SW != math.inf).sum(0))


def _rooms(shape: tuple[int, ...], clients: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield consecutive rows of a shape, and uninitialised room for the values of clients, shape (S, W)."""
    length, inner = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if not length * inner:
        return
    step = min(length, max(1, WIDTH // inner))
    room = like.new_empty(clients * step * inner)
    for start in range(0, length, step):
        stop = min(length, start + step)
        width = (stop - start) * inner
        yield slice(start, stop), room[: clients * width].view(clients, width)


def _cut(part: slice | Tensor, rows: slice) -> slice | Tensor:
    """Return some of the positions of one dimension of an entry."""
    return slice(part.start + rows.start, part.start + rows.stop) if isinstance(part, slice) else part[rows]


def _within(part: slice | Tensor, rows: slice) -> tuple[slice, slice | Tensor]:
    """Return which positions of a dimension lie within some rows, and these positions from the first row on."""
    if isinstance(part, slice):
        start, stop = max(part.start, rows.start), min(part.stop, rows.stop)
        local = slice(start - part.start, max(start, stop) - part.start)
        return local, slice(start - rows.start, max(start, stop) - rows.start)
    first, last = torch.searchsorted(part, torch.tensor([rows.start, rows.stop])).tolist()
    return slice(first, last), part[first:last] - rows.start


def _places(part: Part) -> dict[str, slice]:
    held = part.held
    return {name: slice(at, at + size) for name, at, size in zip(part, held.offsets, held.sizes, strict=True)}


def _held_rows(shape: tuple[int, ...], mask: Tensor | None) -> list[int]:
    """Return the number of held entries before each row of a tensor, and in all rows."""
    if mask is None:
        return [row * math.prod(shape[1:]) for row in range(shape[0] + 1)]
    return list(accumulate(mask.flatten(1).sum(1).tolist() if len(shape) > 1 else mask.long().tolist(), initial=0))
