"""Words of a few bits packed into bytes, lowest bit first."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetfl.wire.malformed import MalformedPayload, Reason

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

_BLOCK = 1 << 13  # words at a time, so that their single bits stay in the cache: a multiple of 8


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` words of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(words: NDArray[np.integer[Any]], bits: int) -> Bytes:
    """Return words in [0, 2^bits), shape (k,), one behind the other; the last byte is filled up with zeros.

    >>> pack(np.array([1, 2, 3]), 2).tolist()
    [57]
    """
    if bits in (8, 16):
        return words.astype(f"<u{bits // 8}").view(np.uint8)
    if bits < 8:
        return _pack_lanes(words, bits)
    packed = np.empty(packed_size(words.size, bits), dtype=np.uint8)
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK]
        planes = np.empty((block.size, bits), dtype=np.uint8)
        for bit in range(bits):
            planes[:, bit] = block >> bit & 1
        at = start * bits // 8
        packed[at : at + packed_size(block.size, bits)] = np.packbits(planes, bitorder="little")
    return packed


def unpack(data: Bytes, count: int, bits: int) -> NDArray[np.integer[Any]]:
    """Return the words of :func:`pack`, shape (count,): uint8 up to 8 bits, else int64.

    Args:
        data: ``packed_size(count, bits)`` bytes; bits behind the last word are not looked at.
        count: number of words.
        bits: of each.
    """
    if bits in (8, 16):
        return data if bits == 8 else data.view("<u2").astype(np.int64)
    if bits < 8:
        return _unpack_lanes(data, count, bits) if bits else np.zeros(count, dtype=np.uint8)
    words = np.zeros(count, dtype=np.int64)
    for start in range(0, count, _BLOCK):
        block = words[start : start + _BLOCK]
        flat = np.unpackbits(data[start * bits // 8 :], count=block.size * bits, bitorder="little")
        planes = flat.reshape(block.size, bits)
        for bit in range(bits):
            block |= planes[:, bit].astype(np.int64) << bit
    return words


@cache
def _lanes(bits: int) -> tuple[tuple[np.uint64, np.uint64, np.uint64], ...]:
    """Return what joins the lanes of an integer of 64 bits in pairs: lanes of 8 bits, then of 16, then of 32.

    Each is (shift, lower mask, upper mask): by how many bits the upper lane of a pair moves down to lie behind the
    lower one, the bits of all lower lanes, and those of all upper lanes behind them.
    """
    joins = []
    for width, used in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        lower = sum((1 << used) - 1 << at for at in range(0, 64, 2 * width))
        joins.append((np.uint64(width - used), np.uint64(lower), np.uint64(lower << used)))
    return tuple(joins)


def _pack_lanes(words: NDArray[np.integer[Any]], bits: int) -> Bytes:
    """Return packed words of fewer than 8 bits: eight words at a time are the lanes of an integer of 64 bits."""
    eights = np.zeros(-(-words.size // 8), dtype="<u8")
    eights.view(np.uint8)[: words.size] = words
    for shift, lower, upper in _lanes(bits):
        eights = eights & lower | eights >> shift & upper
    rows = np.ascontiguousarray(eights.view(np.uint8).reshape(-1, 8)[:, :bits])
    return rows.reshape(-1)[: packed_size(words.size, bits)]


def _unpack_lanes(data: Bytes, count: int, bits: int) -> Bytes:
    """Return the words of :func:`_pack_lanes`."""
    eights = np.zeros(-(-count // 8), dtype="<u8")
    rows = eights.view(np.uint8).reshape(-1, 8)
    whole = packed_size(count, bits) // bits
    rows[:whole, :bits] = data[: whole * bits].reshape(-1, bits)
    rest = data[whole * bits : packed_size(count, bits)]
    if rest.size:
        rows[whole, : rest.size] = rest
    for shift, lower, upper in reversed(_lanes(bits)):
        eights = eights & lower | (eights & upper) << shift
    return eights.view(np.uint8)[:count]


def require_zero_padding(last: int, used: int, reason: Reason) -> None:
    """Refuse a last byte whose bits are not zero behind those in use.

    Args:
        last: the byte.
        used: number of bits in use up to its end, all bytes before it counted; where it fills the byte, none is behind.
        reason: of the refusal.

    Raises:
        MalformedPayload: one of them is set.
    """
    if used % 8 and last >> used % 8:
        raise MalformedPayload(reason, "Expected zeros behind the last word but got ones")
