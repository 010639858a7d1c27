"""Words of a few bits packed into bytes, lowest bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetfl.wire.malformed import MalformedPayload, Reason

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

_BLOCK = 1 << 13  # words at a time, so that their single bits stay in the cache: a multiple of 8


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` words of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(words: Integers, bits: int) -> Bytes:
    """Return words in [0, 2^bits), shape (k,), one behind the other; the last byte is filled up with zeros.

    >>> pack(np.array([1, 2, 3]), 2).tolist()
    [57]
    """
    if bits in (8, 16):
        return words.astype(f"<u{bits // 8}").view(np.uint8)
    packed = np.empty(packed_size(words.size, bits), dtype=np.uint8)
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK]
        planes = np.empty((block.size, bits), dtype=np.uint8)
        for bit in range(bits):
            planes[:, bit] = block >> bit & 1
        at = start * bits // 8
        packed[at : at + packed_size(block.size, bits)] = np.packbits(planes, bitorder="little")
    return packed


def unpack(data: Bytes, count: int, bits: int) -> Integers:
    """Return the words of :func:`pack`, int64, shape (count,).

    Args:
        data: ``packed_size(count, bits)`` bytes; bits behind the last word are not looked at.
        count: number of words.
        bits: of each.
    """
    if bits in (8, 16):
        return data.view(f"<u{bits // 8}").astype(np.int64)
    words = np.zeros(count, dtype=np.int64)
    for start in range(0, count if bits else 0, _BLOCK):
        block = words[start : start + _BLOCK]
        flat = np.unpackbits(data[start * bits // 8 :], count=block.size * bits, bitorder="little")
        planes = flat.reshape(block.size, bits)
        for bit in range(bits):
            block |= planes[:, bit].astype(np.int64) << bit
    return words


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
