"""Parts: the entries of a global model that a client holds in one round."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.layout import Index, IndexEntry, Layout, iter_entries
from hetfl.recipe import Recipe
from hetfl.submodel import relative, take

T = TypeVar("T")

DERIVED = 256
"""Largest number of cached results per part, such as those for different sets of labels."""


class Part(dict[str, IndexEntry]):
    """The entries of a global model that a client holds: an index and, if the part is sparse, a mask.

    The index has, by tensor and dimension, the positions of the client's tensor in the global one: it determines the
    shapes of the client's net. The mask marks the held entries among those of the index, with the tensors one after the
    other; all other entries are always zero. A vector of a part has one value per held entry, in the order of the
    index. A part is immutable, and caches results that are computed from it.

    Args:
        index: entries by name: parameters, then float buffers, then frozen parameters.
        mask_D: bool, shape (D,), for the D entries of the index; None: the client holds all of them.
        recipe: the seeds that the part was drawn with; a message may contain them in place of positions and mask.
            None: the part was not drawn.

    Raises:
        ValueError: the mask is not bool, or its length is not D.
    """

    def __init__(self, index: Index, mask_D: Tensor | None = None, recipe: Recipe | None = None) -> None:
        super().__init__(index)
        self.recipe = recipe
        if mask_D is not None and (mask_D.dtype != torch.bool or mask_D.shape != (self.layout.size,)):
            raise ValueError(
                f"Expected a mask of {self.layout.size} bools but got {mask_D.dtype} of shape {tuple(mask_D.shape)}"
            )
        self.mask_D = None if mask_D is None or bool(mask_D.all()) else mask_D

    @cached_property
    def layout(self) -> Layout:
        """The layout of the index's tensors in a flat vector of all their entries, held or not."""
        return Layout(dict(iter_entries(self)))

    @cached_property
    def size(self) -> int:
        """Number of held entries, which is the length of a vector of the part."""
        return self.layout.size if self.mask_D is None else int(self.mask_D.count_nonzero())

    @cached_property
    def held(self) -> Layout:
        """The layout of tensors in a vector of the part; with a mask a tensor's shape is its number of held entries."""
        if self.mask_D is None:
            return self.layout
        counts = [int(each.count_nonzero()) for each in self.mask_D.split(self.layout.sizes)]
        return Layout({name: (count,) for name, count in zip(self, counts, strict=True)})

    @cached_property
    def dense(self) -> Part:
        """The part without its mask: itself if it has none."""
        return self if self.mask_D is None else Part(self)

    @cached_property
    def key(self) -> bytes:
        """A digest of index and mask; parts with equal keys are equal."""
        content = hashlib.blake2b(digest_size=16)
        for name, entry in self.items():
            content.update(f"{name}\0{len(entry)}\0".encode())
            for each in entry:
                if isinstance(each, slice):
                    content.update(f"{each.start}:{each.stop}\0".encode())
                else:
                    content.update(f"{each.numel()},".encode() + each.to("cpu", torch.int64).numpy().tobytes())
        if self.mask_D is not None:
            content.update(np.packbits(self.mask_D.cpu().numpy()).tobytes())
        return content.digest()

    @cached_property
    def _kept(self) -> OrderedDict[Hashable, Any]:
        return OrderedDict()

    def derived(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached result of ``make`` for a key, or call it; at most :data:`DERIVED` results are cached."""
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = make()
            if len(self._kept) > DERIVED:
                self._kept.popitem(last=False)
        result: T = self._kept[key]
        return result

    def packed(self, values_D: Tensor) -> Tensor:
        """Return the values of held entries, given those of all entries of the index, shape (D,)."""
        return values_D if self.mask_D is None else values_D[self.mask_D.to(values_D.device)]

    def spread(self, vector: Tensor) -> Tensor:
        """Return values for all entries of the index, shape (D,), given a vector of the part: 0 where not held."""
        if self.mask_D is None:
            return vector
        return vector.new_zeros(self.layout.size).masked_scatter_(self.mask_D.to(vector.device), vector)

    def covers(self, other: Part) -> bool:
        """Return whether this part contains all held entries of another one."""
        return self.derived(("covers", other.key), lambda: self._covers(other))

    def _covers(self, other: Part) -> bool:
        if self is other:
            return True
        masks = None if self.mask_D is None else self.layout.views(self.mask_D)
        wanted = None if other.mask_D is None else other.layout.views(other.mask_D)
        for name, entry in other.items():
            try:
                inner = relative(entry, self[name])
            except (KeyError, ValueError):  # this part lacks a tensor or a position
                return False
            if masks is not None:
                held = take(masks[name], inner)
                if not bool((held if wanted is None else held | ~wanted[name]).all()):
                    return False
        return True

    def rows(self, names: frozenset[str], rows_R: Tensor) -> Part:
        """Return the part with only some rows of some tensors.

        Args:
            names: names of tensors whose first dimension is complete in the part.
            rows_R: the rows of these tensors that stay, bool, shape (R,).
        """
        positions = rows_R.nonzero().squeeze(1)
        index = {name: (positions, *entry[1:]) if name in names else entry for name, entry in self.items()}
        if self.mask_D is None:
            return Part(index)
        masks = self.layout.views(self.mask_D)
        kept = [mask[positions] if name in names else mask for name, mask in masks.items()]
        return Part(index, torch.cat([mask.flatten() for mask in kept]))

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Part) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Aggregators key sums by id(part). A copy could reuse the id of a freed part.
        return self

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[dict[str, Any], NDArray[np.uint8] | None, Recipe | None]]:
        # A tensor in a message to another process is an open file as long as the tensor lives: here as long as a round.
        index = {
            name: tuple(each if isinstance(each, slice) else each.cpu().numpy() for each in self[name]) for name in self
        }
        return _part, (index, None if self.mask_D is None else np.packbits(self.mask_D.cpu().numpy()), self.recipe)


def _part(index: dict[str, Any], mask: NDArray[np.uint8] | None, recipe: Recipe | None) -> Part:
    """Return the part that was pickled."""
    entries = {
        name: tuple(each if isinstance(each, slice) else torch.from_numpy(each) for each in entry)
        for name, entry in index.items()
    }
    if mask is None:
        return Part(entries, None, recipe)
    bits = np.unpackbits(mask, count=Layout(dict(iter_entries(entries))).size)
    return Part(entries, torch.from_numpy(bits.astype(bool)), recipe)


def part_of(index: Index) -> Part:
    """Return an index as a part; a part is returned unchanged."""
    return index if isinstance(index, Part) else Part(index)


def index_layout(index: Index) -> Layout:
    """Return the layout of the flat vector of the index's entries, name after name."""
    return index.layout if isinstance(index, Part) else Layout(dict(iter_entries(index)))


def only(index: Index, names: frozenset[str]) -> Part:
    """Return a part restricted to the tensors with some names."""
    part = part_of(index)
    return part.derived(names, lambda: _only(part, names))


def _only(part: Part, names: frozenset[str]) -> Part:
    mask_D = part.mask_D
    if mask_D is not None:
        pieces = zip(part, mask_D.split(part.layout.sizes), strict=True)
        mask_D = torch.cat([piece for name, piece in pieces if name in names] or [mask_D[:0]])
    return Part({name: entry for name, entry in part.items() if name in names}, mask_D)
