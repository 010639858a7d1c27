"""Hostile bytes: a mutated payload is refused with MalformedPayload, or what comes out holds every promise."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from hetfl.types import DenseUpdate, SparseUpdate, Update
from hetfl.wire import Expected, MalformedPayload, decode, dense_size, encode

CASES = 100_000
HEADER = 56
FIELDS = [(0, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 4), (12, 8), (20, 8), (28, 8), (36, 8), (44, 8), (52, 4)]
TEMPTING = [0, 1, 2, 3, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def seeds(size: int) -> list[tuple[bytes, Expected]]:
    """Honest payloads of every kind, dtype and fill."""
    generator = torch.Generator().manual_seed(size)
    found = []
    for dtype in (torch.float32, torch.float64):
        exact = torch.randn(3, generator=generator, dtype=dtype)
        dense = torch.randn(size, generator=generator, dtype=dtype)
        updates: list[Update] = [DenseUpdate(dense), DenseUpdate(dense, exact=exact)]
        for count in (0, 1, size // 20, size // 2, size):
            indices = torch.randperm(size, generator=generator)[:count].sort().values
            updates.append(SparseUpdate(size, indices, dense[indices], exact=exact))
        for update in updates:
            for half_precision in (False, True):
                payload = encode(update, round=7, client=11, half_precision=half_precision)
                found.append((payload, Expected(7, 11, size, update.exact.numel(), dtype)))
    return found


def flip_bits(data: bytearray, chance: random.Random, other: bytes) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def replace_bytes(data: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(data))
    length = min(chance.randint(1, 8), len(data) - start)
    data[start : start + length] = bytes([chance.choice((0, 127, 128, 255, chance.randrange(256)))]) * length


def truncate(data: bytearray, chance: random.Random, other: bytes) -> None:
    del data[chance.randrange(len(data)) :]


def extend(data: bytearray, chance: random.Random, other: bytes) -> None:
    data += chance.randbytes(chance.choice((1, 4, 64)))


def edit_field(data: bytearray, chance: random.Random, other: bytes) -> None:
    offset, length = chance.choice(FIELDS)
    old = int.from_bytes(data[offset : offset + length], "little")
    number = chance.choice([*TEMPTING, old + 1, max(old - 1, 0), old * 2])
    data[offset : offset + length] = (number % 256**length).to_bytes(length, "little")


def splice(data: bytearray, chance: random.Random, other: bytes) -> None:
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


def swap_header(data: bytearray, chance: random.Random, other: bytes) -> None:
    data[:HEADER] = other[:HEADER]


def move_counts(data: bytearray, chance: random.Random, other: bytes) -> None:
    """Lengths that still add up: bytes taken from the values and given to the indices."""
    count, index_bytes = struct.unpack_from("<Q", data, 28)[0], struct.unpack_from("<Q", data, 44)[0]
    moved = chance.choice((1, 2, 4))
    if count >= moved:
        struct.pack_into("<Q", data, 28, count - moved)
        struct.pack_into("<Q", data, 44, (index_bytes + moved * chance.choice((2, 4, 8))) % 2**64)


MUTATORS: list[Callable[[bytearray, random.Random, bytes], None]] = [
    flip_bits,
    replace_bytes,
    truncate,
    extend,
    edit_field,
    splice,
    swap_header,
    move_counts,
]


def mutated(payload: bytes, other: bytes, chance: random.Random) -> bytes:
    """One or two mutations; in half of the cases the checksum is mended, so that later checks are reached."""
    data = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2))):
        if len(data) >= HEADER:
            chance.choice(MUTATORS)(data, chance, other)
    if len(data) >= HEADER and chance.random() < 0.5:
        struct.pack_into("<I", data, HEADER - 4, zlib.crc32(data[HEADER:], zlib.crc32(data[: HEADER - 4])))
    return bytes(data)


def assert_sound(update: Update, data: bytes, expected: Expected) -> None:
    """What the server may rely on, and that these bytes are the only ones for this update."""
    assert isinstance(update, DenseUpdate | SparseUpdate)
    assert update.size == expected.size
    assert update.values.dtype == update.to_dense().dtype == expected.dtype
    assert update.to_dense().shape == (expected.size,)
    assert update.exact.shape == (expected.exact_size,)
    assert bool(torch.isfinite(update.values).all())
    assert bool(torch.isfinite(update.exact).all())
    if isinstance(update, SparseUpdate):
        indices = update.indices.tolist()
        assert len(indices) == len(update.values) <= expected.size
        assert all(0 <= index < expected.size for index in indices)
        assert all(before < after for before, after in itertools.pairwise(indices))
    half_precision = data[6] == 0
    assert encode(update, round=expected.round, client=expected.client, half_precision=half_precision) == data


def test_mutated_payloads_are_refused_or_sound() -> None:
    chance = random.Random(20_240_601)
    honest = seeds(60) + seeds(400)
    outcomes: Counter[str] = Counter()
    for _ in range(CASES):
        payload, expected = chance.choice(honest)
        data = mutated(payload, chance.choice(honest)[0], chance)
        try:
            update = decode(data, expected)
        except MalformedPayload as refusal:
            outcomes[refusal.reason] += 1
        else:
            outcomes["accepted"] += 1
            assert_sound(update, data, expected)
    # Every check was reached, and so was the far end: mended payloads with other values or indices.
    reached = {"length", "format", "dtype", "round", "client", "size", "count", "checksum", "indices", "values"}
    assert set(outcomes) == reached | {"accepted"}
    assert min(outcomes.values()) > CASES // 1000


def test_random_bytes_are_refused() -> None:
    chance = random.Random(5)
    expected = Expected(7, 11, 60)
    for _ in range(2000):
        with pytest.raises(MalformedPayload):
            decode(chance.randbytes(chance.randrange(200)), expected)


def test_memory_stays_near_the_expected_size() -> None:
    size = 20_000
    chance = random.Random(9)
    honest = seeds(size)
    limit = 10 * dense_size(size, 3)
    tracemalloc.start()
    try:
        for _ in range(300):
            payload, expected = chance.choice(honest)
            data = mutated(payload, chance.choice(honest)[0], chance)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(MalformedPayload):
                decode(data, expected)
            assert tracemalloc.get_traced_memory()[1] - before < limit
    finally:
        tracemalloc.stop()
