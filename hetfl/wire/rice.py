"""Small non-negative integers as bytes: a Rice code, in two blocks.

Of an integer g and a parameter l the low l bits are packed, and the quotient q = g >> l is written in unary: q zeros
and a one. First come all low bits, then all quotients: both blocks can be written and read without a loop. Gaps between
random positions are geometric; from a few hundred on the code is within 2 % of their entropy, at densities from 0.1 %
to 10 %.

R. F. Rice, Some practical universal noiseless coding techniques, JPL 79-22, 1979.
"""

from __future__ import annotations

import numpy as np

from hetfl.wire.bits import Bytes, Integers, pack, packed_size, unpack
from hetfl.wire.malformed import MalformedPayload, Reason

_MOST_LOW = 1 << 62  # what the low bits of all integers may add up to at most: int64 holds every sum below


def best_parameter(numbers: Integers) -> int:
    """Return the l of the shortest code, the smallest of several.

    The length in bits, k (l + 1) + Σ (g >> l), is convex in l: the first step that does not shorten it ends the search.
    """
    count, total = numbers.size, int(numbers.sum())
    if not count:
        return 0
    parameter = max(0, (total // count).bit_length() - 2)
    quotients = int((numbers >> parameter).sum())
    while parameter and int((numbers >> parameter - 1).sum()) <= quotients + count:
        parameter -= 1
        quotients = int((numbers >> parameter).sum())
    while (shorter := int((numbers >> parameter + 1).sum())) + count < quotients:
        parameter, quotients = parameter + 1, shorter
    return parameter


def encode(numbers: Integers) -> Bytes:
    """Return a stream: a byte l, then the low bits and the quotients as one row of bits; of no numbers, the byte 0."""
    parameter = best_parameter(numbers)
    low = pack(numbers & (1 << parameter) - 1, parameter)
    begun = numbers.size * parameter % 8  # bits of the last byte of the low bits, in which the quotients go on
    ends = begun + ((numbers >> parameter) + 1).cumsum()
    unary = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    quotients = np.packbits(unary, bitorder="little")
    if begun:
        quotients[0] |= low[-1]
        low = low[:-1]
    return np.concatenate([np.array([parameter], dtype=np.uint8), low, quotients])


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
    ends = np.flatnonzero(np.unpackbits(tail, bitorder="little")[begun:])
    if ends.size != count or tail.size != packed_size(begun + int(ends[-1]) + 1 if count else 0, 1):
        raise MalformedPayload(Reason.INDICES, f"Expected {count} unary numbers to the last byte but got others")
    numbers = np.diff(ends, prepend=-1)
    numbers -= 1
    numbers <<= parameter
    numbers |= unpack(low, count, parameter)
    if int(numbers.sum()) > most:
        raise MalformedPayload(Reason.INDICES, f"Expected integers of at most {most} together but got more")
    return numbers
