"""Updates that wait for the other updates of their round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from hetfl.aggregators.shelf import Plain
from hetfl.layout import entry_shape
from hetfl.part import Part
from hetfl.types import Report
from hetfl.updates import SparseUpdate


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

    @cached_property
    def places(self) -> dict[str, slice]:
        """By name of a tensor, the positions of its held entries in the vector, the exact block included."""
        held = self.part.held
        return {name: slice(at, at + size) for name, at, size in zip(self.part, held.offsets, held.sizes, strict=True)}

    def is_exact(self, name: str) -> bool:
        """Return whether a tensor is a float buffer, which is in the exact block."""
        return bool(self.places[name].start >= self.update.size)

    def read(self, start: int, stop: int) -> Tensor:
        """Return entries of the vector or of the exact block; those that were not sent are 0. They are only read."""
        if start >= self.update.size:
            return self.update.exact[start - self.update.size : stop - self.update.size]
        if not isinstance(self.update, SparseUpdate):
            return self.update.values[start:stop]
        borders = torch.tensor([start, stop], device=self.update.indices.device)
        first, last = torch.searchsorted(self.update.indices, borders).tolist()
        dense = self.update.values.new_zeros(stop - start)
        return dense.index_copy_(0, self.update.indices[first:last] - start, self.update.values[first:last])

    def block(self, name: str) -> Tensor:
        """Return a tensor of an update without a mask, in the shape of the client's part."""
        place = self.places[name]
        return self.read(place.start, place.stop).view(self.part.layout.shapes[name])

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


def _held_rows(shape: tuple[int, ...], mask: Tensor | None) -> list[int]:
    """Return the number of held entries before each row of a tensor, and in all rows."""
    if mask is None:
        return [row * math.prod(shape[1:]) for row in range(shape[0] + 1)]
    return list(accumulate(mask.flatten(1).sum(1).tolist() if len(shape) > 1 else mask.long().tolist(), initial=0))
