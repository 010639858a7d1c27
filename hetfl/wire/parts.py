"""A part as bytes: what a client has to be told of the positions and the mask of what it holds.

The client knows its level's net, and so the leading block of every tensor: a part that is this block is no bytes at
all. Positions and a mask that were drawn from seeds may be sent as these. The bytes are described in ``docs/wire.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hetfl.part import Part
from hetfl.recipe import Recipe
from hetfl.wire.bits import Bytes, Integers
from hetfl.wire.indices import decode_indices, encode_indices
from hetfl.wire.malformed import MalformedPayload, Reason
from hetfl.wire.seeds import MASK, SEEDED, decode_mask, decode_positions, encode_mask, encode_positions, layered

_COUNT, _SELECTION, _MASK = struct.Struct("<H"), struct.Struct("<III"), struct.Struct("<QQ")
NO_MASK, BITS, HELD, NOT_HELD, SEED, SEEDS = range(6)


def encode_part(part: Part, block: Part, whole: Part) -> bytes:
    """Return the bytes of a part, the fewest of those that its positions, its mask and its recipe allow.

    Args:
        part: what a client holds.
        block: the leading block of every tensor, of the same shapes.
        whole: all of every tensor of the global model.
    """
    if part is block or part.key == block.key:
        return b""
    selections: dict[bytes, int] = {}
    numbers = []
    for dimension, of in _dimensions(part, whole):
        leading = isinstance(dimension, slice) and dimension.start == 0
        selection = b"" if leading else _selection(dimension, of, part.recipe)
        numbers.append(selections.setdefault(selection, len(selections) + 1) if selection else 0)
    head = _COUNT.pack(len(selections)) + b"".join(selections)
    return head + np.array(numbers, dtype="<u2").tobytes() + _mask(part)


def decode_part(data: bytes, block: Part, whole: Part) -> Part:
    """Return the part of some bytes.

    Args:
        data: the bytes.
        block: the leading block of every tensor of the client's net.
        whole: all of every tensor of the global model.

    Raises:
        MalformedPayload: they are those of no part with the shapes of ``block`` in ``whole``.
    """
    if not data:
        return block
    reader = _Reader(data)
    (count,) = reader.read(_COUNT)
    selections = [_read_selection(reader) for _ in range(count)]
    numbers = iter(np.frombuffer(reader.take(2 * sum(map(len, block.values()))), dtype="<u2").tolist())
    index = {}
    for name, entry in block.items():
        sizes = zip(entry, whole[name], strict=True)
        index[name] = tuple(_fitting(next(numbers), selections, held, of) for held, of in sizes)
    mask_D = _read_mask(reader, block)
    if reader.left:
        raise MalformedPayload(Reason.LENGTH, f"Expected the end of a part but got {reader.left} bytes more")
    return Part(index, mask_D)


def _dimensions(part: Part, whole: Part) -> Iterator[tuple[slice | Tensor, int]]:
    """Yield what is held in each dimension of each tensor, and the global tensor's size there."""
    for name, entry in part.items():
        yield from zip(entry, whole.layout.shapes[name], strict=True)


def _selection(dimension: slice | Tensor, of: int, recipe: Recipe | None) -> bytes:
    if isinstance(dimension, slice):
        return _SELECTION.pack(dimension.stop - dimension.start, dimension.start, 0)
    positions = dimension.cpu().numpy().astype(np.int64)
    coded = encode_positions(positions, of, recipe)
    return _SELECTION.pack(positions.size, 0, len(coded)) + coded


def _read_selection(reader: _Reader) -> tuple[int, int, bytes]:
    held, first, size = reader.read(_SELECTION)
    return held, first, reader.take(size)


def _fitting(number: int, selections: list[tuple[int, int, bytes]], held: object, of: object) -> slice | Tensor:
    """Return which of a dimension's positions a selection means."""
    assert isinstance(held, slice)
    assert isinstance(of, slice)
    if number == 0:
        return held
    if number > len(selections) or selections[number - 1][0] != held.stop:
        raise MalformedPayload(Reason.SIZE, f"Expected a selection of {held.stop} positions but got another")
    _, first, coded = selections[number - 1]
    if coded[:1] == bytes([SEEDED]):
        return decode_positions(coded, held.stop, of.stop)
    if coded:
        return torch.from_numpy(decode_indices(np.frombuffer(coded, dtype=np.uint8), held.stop, of.stop))
    if first + held.stop > of.stop:
        raise MalformedPayload(Reason.INDICES, f"Expected positions below {of.stop} but got {first + held.stop - 1}")
    return slice(first, first + held.stop)


def _mask(part: Part) -> bytes:
    if part.mask_D is None:
        return bytes([NO_MASK])
    mask_D, sizes = part.mask_D.cpu(), part.layout.sizes
    seeded = encode_mask(mask_D, sizes, list(part), part.recipe)
    if seeded is None:
        return _listed(mask_D, sizes)
    several, record = seeded
    if not several:  # a seed is as long as what stands before a list, so no list is shorter
        return bytes([SEED]) + record
    return min(bytes([SEEDS]) + record, _listed(mask_D, sizes), key=len)


def _listed(mask_D: Tensor, sizes: Sequence[int]) -> bytes:
    """Return the bits of a mask, or the indices of its ones or of its zeros, whichever is shortest."""
    masks = mask_D.split(list(sizes))
    whole = np.array([bool(mask.all()) for mask in masks])
    mask_P = torch.cat([mask for mask, each in zip(masks, whole.tolist(), strict=True) if not each]).numpy()
    ones = np.flatnonzero(mask_P)
    coded: dict[int, tuple[int, Bytes]] = {BITS: (mask_P.size, np.packbits(mask_P))}
    if 2 * ones.size <= mask_P.size:
        coded[HELD] = ones.size, encode_indices(ones)
    else:
        zeros: Integers = np.flatnonzero(~mask_P)
        coded[NOT_HELD] = zeros.size, encode_indices(zeros)
    kind = min(coded, key=lambda kind: coded[kind][1].size)
    count, block = coded[kind]
    return bytes([kind]) + np.packbits(whole).tobytes() + _MASK.pack(count, block.size) + block.tobytes()


def _read_mask(reader: _Reader, block: Part) -> Tensor | None:
    kind = reader.take(1)[0]
    if kind == NO_MASK:
        return None
    if kind > SEEDS:
        raise MalformedPayload(Reason.FORMAT, f"Expected a kind of mask up to {SEEDS} but got {kind}")
    flags = np.frombuffer(reader.take((len(block) + 7) // 8), dtype=np.uint8)
    whole = np.unpackbits(flags, count=len(block)).astype(bool).tolist()
    if kind in (SEED, SEEDS):
        drawn = [not each for each in whole]
        record = layered(drawn) if kind == SEEDS else MASK
        return decode_mask(reader.take(record.size), block.layout.sizes, drawn, kind == SEEDS)
    size = sum(size for size, each in zip(block.layout.sizes, whole, strict=True) if not each)
    count, length = reader.read(_MASK)
    if count > size or (kind == BITS and (count, length) != (size, (size + 7) // 8)):
        raise MalformedPayload(Reason.COUNT, f"Expected a mask of {size} entries but got {count} in {length} bytes")
    coded = np.frombuffer(reader.take(length), dtype=np.uint8)
    if kind == BITS:
        mask_D = np.unpackbits(coded, count=size).astype(bool)
    else:
        mask_D = np.full(size, kind == NOT_HELD)
        mask_D[decode_indices(coded, count, size)] = kind == HELD
    masks = iter(torch.from_numpy(mask_D).split([s for s, e in zip(block.layout.sizes, whole, strict=True) if not e]))
    ones = [torch.ones(size, dtype=torch.bool) if each else next(masks)
            for size, each in zip(block.layout.sizes, whole, strict=True)]  # fmt: skip
    return torch.cat(ones)


class _Reader:
    """Takes bytes from the front of others, and no more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    @property
    def left(self) -> int:
        """Bytes that were not taken."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """Return so many bytes."""
        if count > self.left:
            raise MalformedPayload(Reason.LENGTH, f"Expected {count} bytes of a part but got {self.left}")
        self._position += count
        return self._data[self._position - count : self._position]

    def read(self, form: struct.Struct) -> tuple[int, ...]:
        """Return the numbers of a form."""
        return form.unpack(self.take(form.size))
