"""Strictly increasing indices as bytes: gaps, each an unsigned LEB128 varint.

A varint holds seven bits a byte, low bits first; the high bit of a byte says that another follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetfl.wire.malformed import MalformedPayload, Reason


def encode_indices(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the bytes of strictly increasing indices, shape (k,)."""
    gaps = np.diff(indices, prepend=-1) - 1
    bits = int(gaps.max(initial=0)).bit_length()
    lengths = np.ones(gaps.size, dtype=np.int64)
    for shift in range(7, bits, 7):
        lengths += gaps >> shift > 0
    ends = lengths.cumsum()
    encoded = np.empty(int(lengths.sum()), dtype=np.uint8)
    for position in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > position)
        follows = (lengths[longer] > position + 1) << 7
        encoded[ends[longer] - lengths[longer] + position] = gaps[longer] >> 7 * position & 127 | follows
    return encoded


def longest_encoding(count: int, size: int) -> int:
    """Return the most bytes that ``count`` strictly increasing indices below ``size`` can take.

    A varint of n > 1 bytes holds a gap of at least 128**(n-1) >= 128 (n-1), and the gaps sum to at most size - count:
    so the bytes beyond one each are at most (size - count) / 128.
    """
    return count + (size - count) // 128 if count else 0


def decode_indices(encoded: NDArray[np.uint8], count: int, size: int) -> NDArray[np.int64]:
    """Return the indices, shape (count,).

    Raises:
        MalformedPayload: the bytes are not ``count`` shortest varints, or the indices do not stay below ``size``.
    """
    ends = np.flatnonzero(encoded < 128)
    if ends.size != count or (encoded.size and encoded[-1] >= 128):
        raise MalformedPayload(Reason.INDICES, f"Expected {count} whole varints but got {ends.size} that end")
    if not count:
        return np.empty(0, dtype=np.int64)
    lengths = np.diff(ends, prepend=-1)
    longest, bound = int(lengths.max()), max(1, -(-(size - 1).bit_length() // 7))
    if longest > bound:
        raise MalformedPayload(Reason.INDICES, f"Expected varints of at most {bound} bytes but got one of {longest}")
    last = encoded[ends]
    if bool(((last == 0) & (lengths > 1)).any()):
        raise MalformedPayload(Reason.INDICES, "Expected every varint in its shortest form but got an overlong one")
    steps = last.astype(np.int64)  # from the high bits down
    for position in range(1, longest):
        longer = np.flatnonzero(lengths > position)
        steps[longer] = steps[longer] << 7 | encoded[ends[longer] - position] & 127
    steps[1:] += 1
    indices = steps.cumsum(out=steps)
    # A sum that left int64 shows as a fall: one step alone is far below 2**63.
    if int(indices[-1]) >= size or bool((indices[1:] <= indices[:-1]).any()):
        raise MalformedPayload(Reason.INDICES, f"Expected strictly increasing indices below {size} but got others")
    return indices
