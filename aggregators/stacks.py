"""The values of several clients for the same entries, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.aggregators.regions import Region, regions
from hetfl.aggregators.waiting import Waiting
from hetfl.layout import IndexEntry, entry_shape
from hetfl.submodel import put, relative, take

WIDTH = 1 << 15
"""Entries whose values are side by side at once, if no row of a tensor is longer: 128 KiB of float32 for a client."""


@dataclass(frozen=True)
class Place:
    """Where some columns of a stack belong.

    Attributes:
        name: of a tensor.
        entry: its entries.
        columns: the columns of the stack.
    """

    name: str
    entry: IndexEntry
    columns: slice

    def put(self, tensors: Mapping[str, Tensor], values_W: Tensor) -> None:
        """Write the values of these columns, out of those of the stack, into their tensor."""
        put(tensors[self.name], self.entry, values_W[self.columns].view(entry_shape(self.entry)))


@dataclass(frozen=True)
class Stack:
    """The values of S clients for the same W entries.

    Attributes:
        places: what the entries are.
        holders: numbers of the clients.
        exact: whether the entries are of float buffers, and not of parameters.
        values_SW: the values, +inf at entries that a client does not hold; a reader may overwrite them.
        counts_W: number of holders of each entry, int64; None: every client holds every entry.
    """

    places: Sequence[Place]
    holders: Sequence[int]
    exact: bool
    values_SW: Tensor
    counts_W: Tensor | None = None


def stacks(waiting: Sequence[Waiting], tensors: Mapping[str, Tensor]) -> Iterator[Stack]:
    """Yield the values of all held entries of all tensors, each entry once.

    Entries that the same clients hold are together, of whatever tensors: few wide stacks take less time than many.

    Args:
        waiting: the updates.
        tensors: the global tensors by name, for shapes, dtype and device.
    """
    together: dict[object, list[tuple[str, Region]]] = {}
    for name, tensor in tensors.items():
        entries = {k: each.part[name] for k, each in enumerate(waiting) if name in each.part}
        if not tensor.shape:
            entries = {k: entry for k, entry in entries.items() if waiting[k].whole(name)}
        if not entries:
            continue
        exact = waiting[next(iter(entries))].is_exact(name)
        found = regions(tensor.shape, entries) if all(waiting[k].whole(name) for k in entries) else None
        if found is None:
            yield from _ragged(waiting, name, tensor, list(entries), exact)
            continue
        for region in found:
            together.setdefault((region.holders, exact, tensor.dtype, tensor.device), []).append((name, region))
    for group in together.values():
        name, region = group[0]
        exact = waiting[region.holders[0]].is_exact(name)
        yield from _straight(waiting, group, tensors[name], region.holders, exact)


def _straight(
    waiting: Sequence[Waiting], group: Sequence[tuple[str, Region]], like: Tensor, holders: Sequence[int], exact: bool
) -> Iterator[Stack]:
    """Yield the values of regions that are held whole by the same clients."""
    rows = [math.prod(entry_shape(region.entry)[1:]) for _, region in group]
    room = like.new_empty(len(holders), max(WIDTH, *rows) if rows else 0)
    places, used = list[Place](), 0
    for (name, region), inner in zip(group, rows, strict=True):
        blocks = _blocks(waiting, name, region)
        shape, done = entry_shape(region.entry) or (1,), 0
        while done < shape[0]:
            step = min(shape[0] - done, (room.shape[1] - used) // max(1, inner))
            if not step:
                yield Stack(places, holders, exact, room[:, :used])
                places, used = [], 0
                continue
            cut, columns = slice(done, done + step), slice(used, used + step * inner)
            entry = _cut(region.entry, cut)
            targets = room[:, columns].view(len(blocks), *entry_shape(entry))
            for target, (block, within) in zip(targets, blocks, strict=True):
                target.copy_(take(block, _cut(within, cut)))
            places.append(Place(name, entry, columns))
            done, used = done + step, columns.stop
    if used:
        yield Stack(places, holders, exact, room[:, :used])


def _blocks(waiting: Sequence[Waiting], name: str, region: Region) -> list[tuple[Tensor, IndexEntry]]:
    """Return for each holder of a region a block of its values, and where the region is in it."""
    inner: dict[int, IndexEntry] = {}  # by the id of a part, as many clients have the same one
    blocks = []
    for k in region.holders:
        part = waiting[k].part
        if id(part) not in inner:
            inner[id(part)] = relative(region.entry, part[name])
        block, entry = waiting[k].block(name), inner[id(part)]
        if entry and all(isinstance(each, slice) for each in entry[1:]):  # a view takes no copy
            block, entry = take(block, (slice(0, len(block)), *entry[1:])), entry[:1]
        blocks.append((block, entry))
    return blocks


def _ragged(
    waiting: Sequence[Waiting], name: str, like: Tensor, holders: Sequence[int], exact: bool
) -> Iterator[Stack]:
    """Yield the values of all entries of a tensor, for clients that hold different ones of them."""
    inner = math.prod(like.shape[1:])
    step = max(1, WIDTH // max(1, inner))
    for start in range(0, len(like) if inner else 0, step):
        rows = slice(start, min(len(like), start + step))
        room = like.new_full((len(holders), rows.stop - rows.start, *like.shape[1:]), math.inf)
        for row, k in zip(room, holders, strict=True):
            entry = waiting[k].part[name]
            local, shifted = _within(entry[0], rows)
            if local.stop > local.start:
                put(row, (shifted, *entry[1:]), waiting[k].rows(name, local).to(row))
        place = Place(name, (rows, *(slice(0, size) for size in like.shape[1:])), slice(0, room[0].numel()))
        values_SW = room.flatten(1)
        yield Stack([place], holders, exact, values_SW, (values_SW != math.inf).sum(0))


def _cut(entry: IndexEntry, rows: slice) -> IndexEntry:
    """Return an entry with some of its positions in the first dimension."""
    if not entry:
        return entry
    first, *others = entry
    cut = slice(first.start + rows.start, first.start + rows.stop) if isinstance(first, slice) else first[rows]
    return cut, *others


def _within(part: slice | Tensor, rows: slice) -> tuple[slice, slice | Tensor]:
    """Return which positions of a dimension lie within some rows, and these positions from the first row on."""
    if isinstance(part, slice):
        start, stop = max(part.start, rows.start), min(part.stop, rows.stop)
        local = slice(start - part.start, max(start, stop) - part.start)
        return local, slice(start - rows.start, max(start, stop) - rows.start)
    first, last = torch.searchsorted(part, torch.tensor([rows.start, rows.stop])).tolist()
    return slice(first, last), part[first:last] - rows.start
