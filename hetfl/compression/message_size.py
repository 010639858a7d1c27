"""How many entries fit in a message, by the entropy of their positions."""

from __future__ import annotations

import math

from hetfl.wire import dense_size


def sparse_bytes(size: int, count: int, itemsize: float) -> float:
    """Return the bytes of ``count`` of ``size`` entries, their positions at their entropy, log2 C(D, k) bits."""
    bits = (math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)) / math.log(2)
    return dense_size(0) + count * itemsize + bits / 8


def affordable_count(size: int, room: float, itemsize: float) -> int:
    """Return the largest number of entries whose message fits; at least one, if there are any.

    Args:
        size: D, entries of the vector.
        room: bytes that the message may have.
        itemsize: bytes of a value.
    """
    # Up to half of the entries the bytes grow with their number; beyond, they hardly fall for the last few.
    least, most = min(1, size), size
    while least < most:
        middle = (least + most + 1) // 2
        if sparse_bytes(size, middle, itemsize) <= room:
            least = middle
        else:
            most = middle - 1
    return least
