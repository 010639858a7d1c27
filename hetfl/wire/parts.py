"""A part as bytes: what a client has to be told of the positions and the mask of what it holds.

The client knows its level's net, and so the leading block of every tensor: a part that is this block is no bytes at
all. The bytes of other parts are described in ``docs/wire.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hetfl.part import Part
from hetfl.wire.bits import Bytes, Integers
from hetfl.wire.indices import decode_indices, encode_indices
from hetfl.wire.malformed import MalformedPayload, Reason

_COUNT, _SELECTION, _MASK = struct.Struct("<H"), struct.Struct("<III"), struct.Struct("<QQ")
NO_MASK, BITS, HELD, NOT_HELD = range(4)


def encode_part(part: Part, block: Part) -> bytes:
    """Return the bytes of a part.

    Args:
        part: what a client holds.
        block: the leading block of every tensor, of the same shapes.
    """
    if part is block or part.key == block.key:
        return b""
    selections: dict[bytes, int] = {}
    numbers = []
    for dimension in _dimensions(part):
        leading = isinstance(dimension, slice) and dimension.start == 0
        numbers.append(0 if leading else selections.setdefault(_selection(dimension), len(selections) + 1))
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


def _dimensions(part: Part) -> Iterator[slice | Tensor]:
    for entry in part.values():
        yield from entry


def _selection(dimension: slice | Tensor) -> bytes:
    if isinstance(dimension, slice):
        return _SELECTION.pack(dimension.stop - dimension.start, dimension.start, 0)
    positions = dimension.cpu().numpy().astype(np.int64)
    coded = encode_indices(positions).tobytes()
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
    if coded:
        return torch.from_numpy(decode_indices(np.frombuffer(coded, dtype=np.uint8), held.stop, of.stop))
    if first + held.stop > of.stop:
        raise MalformedPayload(Reason.INDICES, f"Expected positions below {of.stop} but got {first + held.stop - 1}")
    return slice(first, first + held.stop)


def _mask(part: Part) -> bytes:
    if part.mask_D is None:
        return bytes([NO_MASK])
    masks = part.mask_D.cpu().split(part.layout.sizes)
    whole = np.array([bool(mask.all()) for mask in masks])
    mask_D = torch.cat([mask for mask, each in zip(masks, whole.tolist(), strict=True) if not each]).numpy()
    ones = np.flatnonzero(mask_D)
    coded: dict[int, tuple[int, Bytes]] = {BITS: (mask_D.size, np.packbits(mask_D))}
    if 2 * ones.size <= mask_D.size:
        coded[HELD] = ones.size, encode_indices(ones)
    else:
        zeros: Integers = np.flatnonzero(~mask_D)
        coded[NOT_HELD] = zeros.size, encode_indices(zeros)
    kind = min(coded, key=lambda kind: coded[kind][1].size)
    count, block = coded[kind]
    return bytes([kind]) + np.packbits(whole).tobytes() + _MASK.pack(count, block.size) + block.tobytes()


def _read_mask(reader: _Reader, block: Part) -> Tensor | None:
    kind = reader.take(1)[0]
    if kind == NO_MASK:
        return None
    if kind > NOT_HELD:
        raise MalformedPayload(Reason.FORMAT, f"Expected a kind of mask up to {NOT_HELD} but got {kind}")
    flags = np.frombuffer(reader.take((len(block) + 7) // 8), dtype=np.uint8)
    whole = np.unpackbits(flags, count=len(block)).astype(bool).tolist()
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
