"""A pseudo-random choice of positions by a seed, so that two sides can draw the same positions without sending them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 1 << 13  # positions at a time, so that intermediate results stay in the cache

Words = NDArray[np.uint64]


def mix(words: Words) -> Words:
    """Return the finaliser of SplitMix64 of each word; it is a bijection of 64-bit words.

    Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def permuted(positions: Words, size: int, seed: int) -> Words:
    """Return the images of some positions under a pseudo-random permutation of [0, ``size``).

    The permutation is a balanced Feistel network of 8 rounds on words of 2h bits, with the least h that covers
    ``size``. Its round function is the low half of ``mix(right + (64-bit) (seed + golden ratio * (round + 1)))``. A
    word outside [0, ``size``) is permuted again until it is inside (cycle walking), which takes fewer than 4 turns on
    average.

    Args:
        positions: in [0, ``size``).
        size: at least 1, below 2**62.
        seed: 64 bits.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64((seed + _GOLDEN * (number + 1)) & _MASK) for number in range(ROUNDS)]
    words = positions.copy()
    outside = np.arange(words.size)
    while outside.size:
        left, right = words[outside] >> shift, words[outside] & low
        for key in keys:
            left, right = right, left ^ (mix(right + key) & low)
        words[outside] = left << shift | right
        outside = outside[words[outside] >= size]
    return words


def chosen(size: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` different positions below ``size``, ascending: the images of 0, 1, ... under the permutation.

    >>> chosen(10, 3, seed=1).tolist()
    [1, 3, 5]
    """
    positions = np.empty(count, dtype=np.int64)
    for start in range(0, count, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, count), dtype=np.uint64)
        positions[start : start + _BLOCK] = permuted(block, size, seed)
    positions.sort()
    return positions
