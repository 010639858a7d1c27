"""Rice coding in loops that numba compiles; imported only where numba is there and a stream is long.

A stream is looked at as words of 64 bits, lowest bit first; bit 0 is the first of the byte that names the parameter.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from hetfl.compiled import DE_BRUIJN, POSITION_OF

_compiled = numba.njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)


@_compiled
def quotients(numbers: Any, first: int) -> tuple[int, int, int, int]:
    """Return the sums of all quotients by 2^l for four parameters, the first and its neighbours above."""
    zeroth = once = twice = thrice = 0
    for i in range(numbers.size):
        quotient = numbers[i] >> first
        zeroth += quotient
        once += quotient >> 1
        twice += quotient >> 2
        thrice += quotient >> 3
    return zeroth, once, twice, thrice


@_compiled
def write(numbers: Any, parameter: int, words: Any) -> None:
    """Write all low bits from bit 8 on, then all quotients in unary.

    Args:
        numbers: int64, shape (k,).
        parameter: l, at most 62.
        words: uint64, zero behind bit 8, with a word more than the stream needs.
    """
    one, mask = np.uint64(1), np.uint64((1 << parameter) - 1)
    position = 8
    if parameter:
        for i in range(numbers.size):
            low, shift = np.uint64(numbers[i]) & mask, np.uint64(position & 63)
            words[position >> 6] |= low << shift
            words[(position >> 6) + 1] |= (low >> one) >> (np.uint64(63) - shift)
            position += parameter
    for i in range(numbers.size):
        position += numbers[i] >> parameter
        words[position >> 6] |= one << np.uint64(position & 63)
        position += 1


@_compiled
def read(words: Any, parameter: int, numbers: Any) -> int:
    """Read what :func:`write` wrote; return the bit behind the last quotient, or -1 if there are not just k of them.

    Args:
        words: uint64, zero behind the stream's last byte, with a word more than the stream needs.
        parameter: l, at most 62.
        numbers: int64, shape (k,); takes the integers.
    """
    one, mask = np.uint64(1), np.uint64((1 << parameter) - 1)
    begin = 8 + numbers.size * parameter
    found, last = 0, begin - 1
    for at in range(begin >> 6, words.size):
        word = words[at]
        if at == begin >> 6:
            word = (word >> np.uint64(begin & 63)) << np.uint64(begin & 63)
        while word:
            if found == numbers.size:
                return -1
            lowest = word & (~word + one)
            word ^= lowest
            position = (at << 6) + POSITION_OF[(lowest * DE_BRUIJN) >> np.uint64(58)]
            numbers[found] = (position - last - 1) << parameter
            last = position
            found += 1
    if found < numbers.size:
        return -1
    position = 8
    for i in range(numbers.size if parameter else 0):
        shift = np.uint64(position & 63)
        low = words[position >> 6] >> shift | (words[(position >> 6) + 1] << one) << (np.uint64(63) - shift)
        numbers[i] |= np.int64(low & mask)
        position += parameter
    end: int = last + 1
    return end
