"""Strictly increasing indices as bytes: gaps one by one, or runs of neighbours, whichever is shorter."""

from __future__ import annotations

import struct

import numpy as np

from hetfl.wire import rice
from hetfl.wire.bits import Bytes, Integers
from hetfl.wire.malformed import MalformedPayload, Reason

RUNS = 255
"""First byte of a block of runs; a block of gaps begins with its Rice parameter, which is below 64."""

_RUNS = struct.Struct("<BQQ")
"""The first byte, the number of runs, and bytes of the first of the two streams."""


def encode_indices(indices: Integers) -> Bytes:
    """Return the block of strictly increasing indices, shape (k,).

    Of gaps: one Rice stream of ``index[i] - index[i-1] - 1``, the first counted from -1. Of runs, for entries in rows:
    the byte 255, the number of runs and the length of the first stream, 8 bytes each, then a stream of the gaps before
    runs, less 1 but for the first, and one of their lengths, less 1. It is used where it is shorter.
    """
    gaps = np.empty_like(indices)
    gaps[:1] = indices[:1]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    best = rice.encode(gaps)
    if 2 * np.count_nonzero(gaps[1:]) > gaps.size - 2:
        return best
    starts = np.flatnonzero(np.concatenate([[1], gaps[1:]]))
    between = gaps[starts]
    between[1:] -= 1
    first = rice.encode(between)
    second = rice.encode(np.diff(starts, append=gaps.size) - 1)
    header = np.frombuffer(_RUNS.pack(RUNS, starts.size, first.size), dtype=np.uint8)
    runs = np.concatenate([header, first, second])
    return runs if runs.size < best.size else best


def decode_indices(block: Bytes, count: int, size: int) -> Integers:
    """Return the indices of a block, int64, shape (count,), strictly increasing in [0, size).

    Raises:
        MalformedPayload: it is not the block of so many indices.
    """
    runs = bool(block.size) and block[0] == RUNS
    indices = _gaps_of_runs(block, count, size) if runs else rice.decode(block, count, size - count)
    indices += 1
    np.cumsum(indices, out=indices)
    indices -= 1
    if runs and count and indices[-1] >= size:
        raise MalformedPayload(Reason.INDICES, f"Expected indices below {size} but got others")
    return indices


def _gaps_of_runs(block: Bytes, count: int, size: int) -> Integers:
    """Return the gaps that runs stand for, shape (count,); they add up to less than ``size``."""
    if block.size < _RUNS.size:
        raise MalformedPayload(Reason.INDICES, f"Expected a block of runs but got {block.size} bytes")
    _, number, first = _RUNS.unpack(block[: _RUNS.size].tobytes())
    streams = block[_RUNS.size :]
    if number > count or not 1 <= first < streams.size:
        raise MalformedPayload(Reason.INDICES, f"Expected at most {count} runs but got {number}, or no second stream")
    between = rice.decode(streams[:first], number, size - count)
    between[1:] += 1
    lengths = rice.decode(streams[first:], number, count - number)
    lengths += 1
    if int(lengths.sum()) != count:
        raise MalformedPayload(Reason.INDICES, f"Expected {count} indices in runs but got {int(lengths.sum())}")
    gaps = np.zeros(count, dtype=np.int64)
    gaps[lengths.cumsum() - lengths] = between
    return gaps
