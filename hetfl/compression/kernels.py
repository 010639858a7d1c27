"""Loops that numba compiles; imported only where numba is there and a vector is long."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from hetfl.compiled import DE_BRUIJN, POSITION_OF

BLOCK = 2048
"""Entries whose sums and marks stay in the first-level cache."""
GROUPS = BLOCK // 64
SIGN_LESS = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
"""The bits of Inf; those of every finite magnitude are below, those of NaN above."""

SIDE_BY_SIDE = np.uint64(0x0102040810204080)
ONE = np.uint64(1)

_compiled = numba.njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)


@_compiled
def _add_and_mark(delta: Any, residual: Any, with_residual: bool, threshold: Any, left: Any, marks: Any) -> Any:
    """Add, and mark the magnitudes, as bits, that reach a threshold; return the largest.

    Two loops for two cases, without a branch and with no array seen under two names: so they become vector
    instructions.
    """
    largest = np.uint32(0)
    if with_residual:
        for i in range(left.size):
            total = np.float32(delta[i] + residual[i])
            left[i] = total
            magnitude = total.view(np.uint32) & SIGN_LESS
            marks[i] = magnitude >= threshold
            largest = max(largest, magnitude)
    else:
        for i in range(left.size):
            total = np.float32(delta[i])
            left[i] = total
            magnitude = total.view(np.uint32) & SIGN_LESS
            marks[i] = magnitude >= threshold
            largest = max(largest, magnitude)
    return largest


@_compiled
def _gather(words: Any, group: int) -> Any:
    """Return the 64 marks of a group of 8 words, each a byte of 0 or 1, as the bits of one word."""
    bits = np.uint64(0)
    for k in range(8):
        # The multiplication moves the lowest bits of the 8 bytes side by side into the highest.
        bits |= ((words[8 * group + k] * SIDE_BY_SIDE) >> np.uint64(56)) << np.uint64(8 * k)
    return bits


@_compiled
def split(
    delta: Any, residual: Any, with_residual: bool, threshold: Any, left: Any, indices: Any, values: Any, start: int
) -> tuple[int, int, bool]:
    """Divide delta + residual at a threshold, block by block, from ``start`` on.

    A block's sums and marks are made by a loop without branches; then the marks are looked through 64 at a time, as
    most are zero. Magnitudes are compared by their bits, which order as they do.

    Args:
        delta: float32, shape (D,).
        residual: float32, shape (D,); not read without ``with_residual``.
        with_residual: whether to add it.
        threshold: bits of λ, or of the least magnitude above 0 if λ is 0: uint32.
        left: float32, shape (D,); takes what is kept.
        indices: int64; takes the positions of what is sent.
        values: float32, as long as ``indices``; takes what is sent.
        start: the first entry.

    Returns:
        Where it stopped: D, or the first block for which ``indices`` may be too short; how many entries are sent;
        whether all was finite.
    """
    size, found = left.size, 0
    marks = np.zeros(BLOCK, dtype=np.uint8)
    words = marks.view(np.uint64)
    for begin in range(start, size, BLOCK):
        end = min(begin + BLOCK, size)
        if found + (end - begin) > indices.size:
            return begin, found, True
        block = left[begin:end]
        marks[end - begin :] = 0
        largest = _add_and_mark(delta[begin:end], residual[begin:end], with_residual, threshold, block, marks)
        if largest >= INFINITE:
            return begin, found, False
        for group in range(GROUPS):
            any_mark = words[8 * group]
            for k in range(1, 8):
                any_mark |= words[8 * group + k]
            bits = _gather(words, group) if any_mark else any_mark
            while bits:
                lowest = bits & (~bits + ONE)
                bits ^= lowest
                i = 64 * group + POSITION_OF[(lowest * DE_BRUIJN) >> np.uint64(58)]
                indices[found] = begin + i
                values[found] = block[i]
                block[i] = 0.0
                found += 1
    return size, found, True
