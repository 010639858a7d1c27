"""Small non-negative integers as bytes: a Rice code, in two blocks.

Of an integer g and a parameter l the low l bits are packed, and the quotient q = g >> l is written in unary: q zeros
and a one. First come all low bits, then all quotients: both blocks can be written and read without a loop. Gaps between
random positions are geometric; from a few hundred on the code is within 2 % of their entropy, at densities from 0.1 %
to 10 %.

R. F. Rice, Some practical universal noiseless coding techniques, JPL 79-22, 1979.

Long streams are written and read by compiled loops where numba is there, with the same bytes and the same refusals.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

from hetfl import compiled
from hetfl.wire.bits import Bytes, Integers, pack, packed_size, unpack
from hetfl.wire.malformed import MalformedPayload, Reason

FEWEST = 1 << 10
"""Integers from which on compiled loops are worth their call."""
_STEPS = np.arange(4)  # parameters whose codes' lengths are found together, less the first of them
_MOST_LOW = 1 << 62  # what the low bits of all integers may add up to at most: int64 holds every sum below


def best_parameter(numbers: Integers) -> tuple[int, int]:
    """Return the l of the shortest code, the smallest of several, and Σ (g >> l).

    The length in bits, k (l + 1) + Σ (g >> l), is convex in l: a minimum that is not at the border of some
    neighbouring parameters is the only one.
    """
    count = numbers.size
    if not count:
        return 0, 0
    first = max(0, (int(numbers.sum()) // count).bit_length() - 3)
    sums, best = _quotients(numbers, first)
    while best == 0 and first:
        first = max(0, first - len(_STEPS) + 1)
        sums, best = _quotients(numbers, first)
    while best == len(_STEPS) - 1:
        first += len(_STEPS) - 1
        sums, best = _quotients(numbers, first)
    return first + best, int(sums[best])


def _quotients(numbers: Integers, first: int) -> tuple[Integers, int]:
    """Return Σ (g >> l) for neighbouring parameters, and which of them gives the shortest code."""
    if is_compiled(numbers.size):
        sums = np.array(_kernels().quotients(numbers, first))
    elif numbers.size < FEWEST:
        sums = (numbers >> (_STEPS[:, None] + first)).sum(axis=1)
    else:  # one by one: all at once would take four times the memory of the numbers
        sums = np.array([(numbers >> first + step).sum() for step in _STEPS])
    return sums, int((sums + numbers.size * _STEPS).argmin())


def encode(numbers: Integers) -> Bytes:
    """Return a stream: a byte l, then the low bits and the quotients as one row of bits; of no numbers, the byte 0."""
    parameter, quotients = best_parameter(numbers)
    if is_compiled(numbers.size):
        return _encode_compiled(numbers, parameter, quotients)
    low = pack(numbers & (1 << parameter) - 1, parameter)
    begun = numbers.size * parameter % 8  # bits of the last byte of the low bits, in which the quotients go on
    ends = begun + ((numbers >> parameter) + 1).cumsum()
    unary = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    tail = np.packbits(unary, bitorder="little")
    if begun:
        tail[0] |= low[-1]
        low = low[:-1]
    return np.concatenate([np.array([parameter], dtype=np.uint8), low, tail])


def decode(stream: Bytes, count: int, most: int) -> Integers:
    """Return the ``count`` integers of a stream, int64, shape (count,).

    Memory stays within a byte per unary bit, of which at most ``count + most`` are read, and 25 per integer.

    Args:
        stream: all bytes of the stream.
        count: number of integers.
        most: what they may add up to, below 2**56.

    Raises:
        MalformedPayload: it is not the stream of so many integers with at most that sum.
    """
    parameter = int(stream[0]) if stream.size else 255
    if parameter > most.bit_length() or count << parameter > _MOST_LOW:
        raise MalformedPayload(Reason.INDICES, f"Expected a Rice parameter up to {most.bit_length()} but got another")
    whole, begun = divmod(count * parameter, 8)
    low, tail = stream[1 : 1 + packed_size(count, parameter)], stream[1 + whole :]
    if stream.size < 1 + whole or tail.size > packed_size(begun + count + (most >> parameter), 1):
        raise MalformedPayload(Reason.INDICES, f"Expected {count} integers of a sum up to {most} but got other bytes")
    if is_compiled(count):
        numbers = _read_compiled(stream, count, parameter)
    else:
        numbers = _read(low, tail, begun, count, parameter)
    if numbers is None:
        raise MalformedPayload(Reason.INDICES, f"Expected {count} unary numbers to the last byte but got others")
    if int(numbers.sum()) > most:
        raise MalformedPayload(Reason.INDICES, f"Expected integers of at most {most} together but got more")
    return numbers


def _read(low: Bytes, tail: Bytes, begun: int, count: int, parameter: int) -> Integers | None:
    """Return the integers of low bits and quotients; None if there are not so many quotients, to the last byte."""
    ends = np.flatnonzero(np.unpackbits(tail, bitorder="little")[begun:])
    if ends.size != count or tail.size != packed_size(begun + int(ends[-1]) + 1 if count else 0, 1):
        return None
    numbers = np.diff(ends, prepend=-1)
    numbers -= 1
    numbers <<= parameter
    numbers |= unpack(low, count, parameter)
    return numbers


def _encode_compiled(numbers: Integers, parameter: int, quotients: int) -> Bytes:
    """Return the stream, as :func:`encode` does; the quotients add up to ``quotients``."""
    size = 1 + packed_size(numbers.size * (parameter + 1) + quotients, 1)
    words = np.zeros(_words(size), dtype=np.uint64)
    words[0] = parameter
    _kernels().write(numbers, parameter, words)
    return words.view(np.uint8)[:size]


def _read_compiled(stream: Bytes, count: int, parameter: int) -> Integers | None:
    """Return the integers of a stream that is long enough for their low bits, as :func:`_read` does."""
    words, numbers = np.zeros(_words(stream.size), dtype=np.uint64), np.empty(count, dtype=np.int64)
    words.view(np.uint8)[: stream.size] = stream
    end = _kernels().read(words, parameter, numbers)
    return numbers if packed_size(end, 1) == stream.size else None


def _words(size: int) -> int:
    """Return the words that hold ``size`` bytes, and one more."""
    return (size + 7) // 8 + 1


def is_compiled(count: int) -> bool:
    """Return whether so many integers are coded by compiled loops, which take words of the machine for eight bytes."""
    return count >= FEWEST and sys.byteorder == "little" and compiled.has_numba()


@cache
def _kernels() -> Any:
    from hetfl.wire import kernels

    return kernels
