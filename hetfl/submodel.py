"""A sub-model is an index into the global model: build indices, read through them, add through them.

Everything that knows how clients' tensors lie in global tensors is in this file. An index entry holds, per dimension, a
``slice(start, stop)`` (a view: no copy) or a sorted LongTensor of positions (a gather).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.types import FixedIndex, Index, IndexEntry, Layout, entry_shape, iter_entries


def parameters_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the net's trained parameters by name, in the order of registration."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def buffers_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the net's persistent float buffers by name: statistics that travel with the parameters."""
    persistent = net.state_dict(keep_vars=True).keys()
    return {
        name: buffer for name, buffer in net.named_buffers() if name in persistent and torch.is_floating_point(buffer)
    }


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """Return what makes a net: trained parameters, float buffers, then frozen parameters, which never travel up."""
    frozen = {name: parameter for name, parameter in net.named_parameters() if not parameter.requires_grad}
    return {**parameters_of(net), **buffers_of(net), **frozen}


def prefix_index(whole: Mapping[str, Tensor], part: Mapping[str, Tensor], level: str) -> dict[str, IndexEntry]:
    """Return the leading block of every tensor, read off the shapes of a sub-model (HeteroFL, section 3).

    Args:
        whole: the global model's tensors.
        part: the sub-model's tensors; a global name that it lacks is absent from the index.
        level: name of the sub-model's level, for messages.

    Raises:
        ConfigurationError: a tensor of the sub-model is unknown to the global model, has another number of
            dimensions, or is larger in one of them.
    """
    index: dict[str, IndexEntry] = {}
    for name, tensor in part.items():
        if name not in whole:
            raise ConfigurationError(
                f"Expected every tensor of the net at level {level} to be in the global model but got {name!r}, "
                "which is not"
            )
        if tensor.dim() != whole[name].dim() or any(
            s > g for s, g in zip(tensor.shape, whole[name].shape, strict=True)
        ):
            raise ConfigurationError(
                f"Expected tensor {name!r} at level {level} to be a leading block of the global "
                f"{tuple(whole[name].shape)} but got shape {tuple(tensor.shape)}"
            )
        index[name] = tuple(slice(0, size) for size in tensor.shape)
    return index


def index_layout(index: Index) -> Layout:
    """Return the layout of the flat vector that holds the entries of an index, name after name."""
    if isinstance(index, FixedIndex):
        return index.layout
    return Layout(dict(iter_entries(index)))


def only(index: Index, names: frozenset[str]) -> FixedIndex:
    """Return the part of an index that has some names."""
    kept = fixed(index)
    return kept.derived(names, lambda: FixedIndex({name: e for name, e in kept.items() if name in names}))


def fixed(index: Index) -> FixedIndex:
    """Return the index as one that nobody changes: itself if it is one."""
    return index if isinstance(index, FixedIndex) else FixedIndex(index)


def extent(entry: IndexEntry) -> tuple[int, ...]:
    """Return the smallest shape whose leading block covers an entry."""
    return tuple(
        part.stop if isinstance(part, slice) else (int(part.max()) + 1 if part.numel() else 0) for part in entry
    )


def _narrowed(tensor: Tensor, entry: IndexEntry) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Return the view that the slices of an entry give, and the dimensions that are left to gather."""
    view, gathers = tensor, []
    for dim, part in enumerate(entry):
        if not isinstance(part, slice):
            # An index lies on the CPU; the global model may not, and residuals do.
            gathers.append((dim, part.to(tensor.device)))
        elif part.stop - part.start != tensor.shape[dim]:
            view = view.narrow(dim, part.start, part.stop - part.start)
    return view, gathers


def take(tensor: Tensor, entry: IndexEntry) -> Tensor:
    """Return ``tensor[entry]``, positions combined as an open mesh: a view if the entry has slices only."""
    view, gathers = _narrowed(tensor, entry)
    for dim, positions in gathers:
        view = view.index_select(dim, positions)
    return view


def _mesh(view: Tensor, gathers: list[tuple[int, Tensor]]) -> tuple[Tensor, ...]:
    axes = [torch.arange(size, device=view.device) for size in view.shape]
    for dim, positions in gathers:
        axes[dim] = positions
    return torch.meshgrid(*axes, indexing="ij")


def put(tensor: Tensor, entry: IndexEntry, values: Tensor) -> None:
    """Write ``tensor[entry] = values`` in place."""
    view, gathers = _narrowed(tensor, entry)
    if not gathers:
        view.copy_(values)
    elif len(gathers) == 1:
        view.index_copy_(gathers[0][0], gathers[0][1], values)
    else:
        view.index_put_(_mesh(view, gathers), values)


def add(tensor: Tensor, entry: IndexEntry, values: Tensor | float, weight: float = 1.0) -> None:
    """Compute ``tensor[entry] += weight * values`` in place; positions of one entry are distinct."""
    view, gathers = _narrowed(tensor, entry)
    if not isinstance(values, Tensor):
        values = tensor.new_tensor(values).expand(entry_shape(entry))
    if not gathers:
        view.add_(values, alpha=weight)
    elif len(gathers) == 1:
        view.index_add_(gathers[0][0], gathers[0][1], values, alpha=weight)
    else:
        view.index_put_(_mesh(view, gathers), values * weight, accumulate=True)


def relative(entry: IndexEntry, base: IndexEntry) -> IndexEntry:
    """Return where the entries of ``entry`` lie inside ``base``, of which they are a part; both in global coordinates.

    Raises:
        ValueError: ``entry`` addresses something outside ``base``.
    """
    return tuple(_relative(part, of) for part, of in zip(entry, base, strict=True))


def _relative(part: slice | Tensor, base: slice | Tensor) -> slice | Tensor:
    if isinstance(base, slice):
        if isinstance(part, slice):
            if part.start < base.start or part.stop > base.stop:
                raise ValueError(f"Expected positions inside {base} but got {part}")
            return slice(part.start - base.start, part.stop - base.start)
        if part.numel() and (int(part.min()) < base.start or int(part.max()) >= base.stop):
            raise ValueError(f"Expected positions inside {base} but got {part.tolist()}")
        shifted: Tensor = part - base.start
        return shifted
    wanted = torch.arange(part.start, part.stop, device=base.device) if isinstance(part, slice) else part
    where = torch.searchsorted(base, wanted)
    if not torch.equal(base[where.clamp(max=base.numel() - 1)], wanted):
        raise ValueError(f"Expected positions among {base.tolist()} but got {wanted.tolist()}")
    return where


class Entries:
    """Where the entries of an index lie in the flat vector of a whole: read and write them there, one after the other.

    A short vector is read through positions in one call, whatever the tensors; a long one tensor by tensor.

    Args:
        index: the entries; a part of ``whole``.
        whole: what the vector holds.
    """

    def __init__(self, index: Index, whole: Index) -> None:
        layout, places = index_layout(whole), _places(index, whole)
        self.whole = [(place.start, place.stop, place.entry) for place in places] == [(0, layout.size, None)]
        self._size, self._places = layout.size, places
        self._scattered = len(places) > 1 and layout.size <= SHORT
        self._positions: Tensor | None = None

    def take(self, vector_D: Tensor) -> Tensor:
        """Return the entries of a vector: a view if they are neighbours in it."""
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
        """Return where the entries lie in a vector, int64, on its device."""
        if self._positions is None:
            self._positions = self._parts(torch.arange(self._size))
        self._positions = self._positions.to(vector_D.device)
        return self._positions

    def _parts(self, vector_D: Tensor) -> Tensor:
        found = []
        for place in self._places:
            within = place.within(vector_D)
            found.append(within if place.entry is None else take(within, place.entry).reshape(-1))
        return found[0] if len(found) == 1 else torch.cat(found)


SHORT = 1 << 15
"""Entries of a vector whose positions are kept: at most 256 KiB of them, for each index in each whole."""


@dataclass(frozen=True)
class _Place:
    """Entries of a flat vector: of one tensor in it those at ``entry``; or neighbours, all of them, without an entry.

    Attributes:
        start: where the tensor, or the first neighbour, begins.
        stop: where it, or the last neighbour, ends.
        size: number of the entries.
        shape: of the tensor.
        entry: in its coordinates.
    """

    start: int
    stop: int
    size: int
    shape: tuple[int, ...] = ()
    entry: IndexEntry | None = None

    def within(self, vector_D: Tensor) -> Tensor:
        """Return the view that contains the entries: neighbours as they lie, or the tensor in its shape."""
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
    """Return the entries of an index as one flat vector, shape (D,)."""
    return torch.cat([take(tensors[name], entry).reshape(-1) for name, entry in index.items()])


def blocks_of(vector_D: Tensor, index: Index) -> dict[str, Tensor]:
    """Return a vector's entries as blocks in global coordinates on the CPU, NaN where the index covers nothing.

    Args:
        vector_D: in the coordinates of the first tensors of the index; those behind its end are left out.
        index: where the entries lie.
    """
    blocks: dict[str, Tensor] = {}
    parts = index_layout(index)
    position = 0
    for (name, entry), size in zip(index.items(), parts.sizes, strict=True):
        if position == vector_D.numel():  # float buffers are behind, in the exact block
            break
        values = vector_D[position : position + size].view(parts.shapes[name]).cpu()
        blocks[name] = values.new_full(extent(entry), math.nan)
        put(blocks[name], entry, values)
        position += size
    return blocks
