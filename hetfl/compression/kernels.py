"""Loops that numba compiles; imported only where numba is there and a vector is long."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

BLOCK = 2048
"""Entries whose sums and marks stay in the first-level cache."""
WORDS = BLOCK // 8
INFINITE = np.uint32(0x7F800000)
"""The bits of Inf; those of every finite magnitude are below, those of NaN above."""

_compiled = numba.njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)


@_compiled
def _add(delta: Any, residual: Any, left: Any, with_residual: bool) -> None:
    if with_residual:
        for i in range(left.size):
            left[i] = delta[i] + residual[i]
    else:
        for i in range(left.size):
            left[i] = delta[i]


@_compiled
def _mark(magnitudes: Any, threshold: Any, marks: Any) -> Any:
    """Mark the magnitudes, as bits, that reach a threshold; return the largest."""
    largest = np.uint32(0)
    for i in range(magnitudes.size):
        magnitude = magnitudes[i] & np.uint32(0x7FFFFFFF)
        marks[i] = magnitude >= threshold
        largest = max(largest, magnitude)
    return largest


@_compiled
def split(
    delta: Any, residual: Any, with_residual: bool, threshold: Any, left: Any, indices: Any, values: Any, start: int
) -> tuple[int, int, bool]:
    """Divide delta + residual at a threshold, block by block, from ``start`` on.

    A block's sums and marks are made by loops without branches, which become vector instructions; then the marks are
    looked through eight at a time, as most are zero. Magnitudes are compared by their bits, which order as they do.

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
        _add(delta[begin:end], residual[begin:end], block, with_residual)
        marks[end - begin :] = 0
        if _mark(block.view(np.uint32), threshold, marks) >= INFINITE:
            return begin, found, False
        for word in range(WORDS):
            if words[word]:
                for i in range(8 * word, 8 * word + 8):
                    if marks[i]:
                        indices[found] = begin + i
                        values[found] = block[i]
                        block[i] = 0.0
                        found += 1
    return size, found, True
