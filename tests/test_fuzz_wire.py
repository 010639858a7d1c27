"""Fuzzing of the decoder: a mutated payload is refused with MalformedPayload, or decodes to a valid update."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hetfl.codes import Codes, Spacing, bucket_sizes
from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update
from hetfl.wire import Expected, MalformedPayload, Reason, as_sent, decode, dense_size, encode, rice
from tests.wire_by_hand import HEADER, as_gaps, as_runs, mended, message
from tests.wire_cases import assert_same

CASES = int(os.environ.get("HETFL_FUZZ", "0")) or 20_000
FRESH = random.SystemRandom().randrange(2**32) if "HETFL_FUZZ" in os.environ else 20_240_601
SEED = int(os.environ.get("HETFL_FUZZ_SEED", FRESH))
CORPUS = sorted((Path(__file__).parent / "wire_corpus").glob("*.json"))
FIELDS = [(0, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 4), (12, 8), (20, 8), (28, 8), (36, 8), (44, 8), (52, 4)]
TEMPTING = [0, 1, 2, 3, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]

Mutator = Callable[[bytearray, random.Random, bytes], None]


def supports(layout: Layout, generator: torch.Generator) -> list[Update]:
    """Return updates of every kind and density, with random values."""
    size = layout.size
    dense = torch.randn(size, generator=generator)
    updates: list[Update] = [DenseUpdate(dense)]
    for count in (0, 1, size // 20, size // 2, size):
        indices = torch.randperm(size, generator=generator)[:count].sort().values
        updates.append(SparseUpdate(dense[indices], indices, size))
    rows = torch.cat([torch.arange(size // 3), torch.arange(size // 2, size)])
    updates.append(SparseUpdate(dense[rows], rows, size))
    for sizes in ((size,), layout.sizes):
        counts = tuple(n // 3 for n in sizes)
        positions = SeededUpdate.positions(99, sizes, counts)
        updates.append(SeededUpdate(dense[positions], positions, size, 99, counts))
    for ranks in ((0, 0, 0), (2, 1, 1)):
        count = sum(LowRankUpdate.lengths(layout, ranks))
        updates.append(LowRankUpdate(torch.randn(count, generator=generator), layout, ranks))
    return updates


def coded(update: Update, layout: Layout, generator: torch.Generator) -> list[Update]:
    """Return the same update in six quantised codings."""
    updates = []
    affine = [(1, 0, False), (5, 16, True), (8, 2**20, False), (16, 7, False)]
    for bits, bucket, own_zeros in (*affine, (3, 2**20, False), (6, 16, True)):
        sizes = bucket_sizes(update.num_sent, bucket) if bucket else update.num_sent_per_tensor(layout)
        scales = torch.rand(len(sizes), generator=generator)
        zeros = torch.rand(len(sizes) if own_zeros else 1, generator=generator)
        words = torch.randint(2**bits, (update.num_sent,), generator=generator, dtype=torch.int32)
        spacing: Spacing = "affine" if (bits, bucket, own_zeros) in affine else "logarithmic"
        ratios = scales if spacing == "affine" else 1 + scales
        updates.append(update.with_codes(Codes(words, bits, ratios, zeros, sizes, bucket, spacing)))
    return updates


def honest(rows: int) -> list[tuple[bytes, Expected]]:
    """Return valid payloads of every kind, dtype and density."""
    generator = torch.Generator().manual_seed(rows)
    layout = Layout({"w": (rows, 2, 3), "b": (rows,), "s": ()})
    payloads = []
    for dtype in (torch.float32, torch.float64):
        exact = torch.randn(3, generator=generator, dtype=dtype)
        for number, update in enumerate(supports(layout, generator)):
            plain = update.with_values(update.values.to(dtype))
            for sent in (plain, *(c.with_codes(c.codes, dtype) for c in coded(update, layout, generator) if c.codes)):
                block = exact if number % 2 else exact[:0]
                payload = encode(
                    sent.with_exact(block), round=7, client=11, half_precision=sent is plain and number > 5
                )
                payloads.append((payload, Expected(7, 11, layout.size, block.numel(), dtype, layout=layout)))
    return payloads


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
    edit(data, chance, *chance.choice(FIELDS))


def edit_support(data: bytearray, chance: random.Random, other: bytes) -> None:
    """Edit a seed, a count, a rank, a Rice parameter or a number of runs."""
    length = chance.choice((1, 2, 8))
    edit(data, chance, HEADER + chance.choice((0, 1, 2, 8, 9, 16, 17, 18, 24)), length)


def edit_code_header(data: bytearray, chance: random.Random, other: bytes) -> None:
    support = int.from_bytes(data[44:52], "little")
    offset, length = chance.choice(((0, 1), (1, 1), (2, 2), (4, 4), (8, 4), (12, 4)))
    edit(data, chance, HEADER + support + offset, length)


def edit(data: bytearray, chance: random.Random, offset: int, length: int) -> None:
    if offset + length > len(data):
        return
    old = int.from_bytes(data[offset : offset + length], "little")
    number = chance.choice([*TEMPTING, old + 1, max(old - 1, 0), old * 2])
    data[offset : offset + length] = (number % 256**length).to_bytes(length, "little")


def splice(data: bytearray, chance: random.Random, other: bytes) -> None:
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


def swap_header(data: bytearray, chance: random.Random, other: bytes) -> None:
    data[:HEADER] = other[:HEADER]


def move_counts(data: bytearray, chance: random.Random, other: bytes) -> None:
    """Move bytes from the values to the support, so that the lengths still add up."""
    count, support = struct.unpack_from("<Q", data, 28)[0], struct.unpack_from("<Q", data, 44)[0]
    moved = chance.choice((1, 2, 4))
    if count >= moved:
        struct.pack_into("<Q", data, 28, count - moved)
        struct.pack_into("<Q", data, 44, (support + moved * chance.choice((2, 4, 8))) % 2**64)


def other_indices(data: bytearray, chance: random.Random, other: bytes) -> None:
    """Replace the block of indices by another one of equal or nearly equal size and count."""
    count, support = struct.unpack_from("<Q", data, 28)[0], struct.unpack_from("<Q", data, 44)[0]
    if data[5] == 1 and count < 1000 and support < 1000:
        size = int.from_bytes(data[20:28], "little") % 4096 + chance.choice((0, 0, 1))
        number = min(size, max(0, count + chance.choice((0, 0, 0, 1, -1))))
        indices = sorted(chance.sample(range(size), number))
        block = chance.choice((as_gaps, as_runs))(indices)
        data[HEADER : HEADER + support] = block
        struct.pack_into("<Q", data, 44, len(block))


MUTATORS: list[Mutator] = [
    *(flip_bits, replace_bytes, truncate, extend, edit_field, edit_support, edit_code_header),
    *(splice, swap_header, move_counts),
]


def mutated(payload: bytes, other: bytes, chance: random.Random) -> bytes:
    """Apply one or two mutations; in half of the cases correct the checksum, so that later checks are reached."""
    data = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2))):
        if len(data) >= HEADER:
            chance.choice(MUTATORS)(data, chance, other)
    if len(data) >= HEADER and chance.random() < 0.02:
        other_indices(data, chance, other)
    if len(data) >= HEADER and chance.random() < 0.5:
        struct.pack_into("<I", data, HEADER - 4, zlib.crc32(data[HEADER:], zlib.crc32(data[: HEADER - 4])))
    return bytes(data)


def assert_sound(update: Update, expected: Expected) -> None:
    """Check the properties that the server relies on."""
    dense = update.to_dense()
    assert update.size == expected.size
    assert update.values.dtype == dense.dtype == expected.dtype
    assert dense.shape == (expected.size,)
    assert update.exact.shape == (expected.exact_size,)
    assert all(bool(torch.isfinite(numbers).all()) for numbers in (update.values, update.exact, dense))
    if isinstance(update, SparseUpdate):
        assert update.values.shape == update.indices.shape
        if update.num_sent:
            assert int(update.indices[0]) >= 0
            assert int(update.indices[-1]) < expected.size
            assert bool((update.indices.diff() > 0).all())
    if update.codes is not None:
        assert bool((update.codes.codes < 2**update.codes.bits).all())
        assert all(bool(torch.isfinite(numbers).all()) for numbers in (update.codes.scales, update.codes.zeros))


def as_finding(data: bytes, expected: Expected) -> str:
    """Return a case in the format of the corpus."""
    layout = None if expected.layout is None else [list(shape) for shape in expected.layout.shapes.values()]
    known = {
        "round": expected.round,
        "client": expected.client,
        "size": expected.size,
        "exact_size": expected.exact_size,
    }
    dtype = str(expected.dtype).removeprefix("torch.")
    return json.dumps({"why": "", "reason": "", **known, "dtype": dtype, "layout": layout, "payload": data.hex()})


def outcome(data: bytes, expected: Expected) -> str:
    """Return the reason of the refusal, or "accepted" if the decoded update is valid."""
    try:
        update = decode(data, expected)
    except MalformedPayload as refusal:
        return refusal.reason
    assert_sound(update, expected)
    return "accepted"


def test_mutated_payloads_are_refused_or_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"seed {SEED}, {CASES} cases")
    chance = random.Random(SEED)
    seeds = honest(4) + honest(40)
    outcomes: Counter[str] = Counter()
    for _ in range(CASES):
        monkeypatch.setattr(rice, "FEWEST", chance.choice((0, 2**62)))  # with or without compiled loops
        payload, expected = chance.choice(seeds)
        data = mutated(payload, chance.choice(seeds)[0], chance)
        if chance.random() < 0.05:
            expected = replace(expected, layout=None)
        try:
            outcomes[outcome(data, expected)] += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\nseed {SEED}; a finding:\n{as_finding(data, expected)}")
    print(dict(outcomes))
    # Every check was reached, and payloads with correct checksums but other values or indices were accepted.
    assert set(outcomes) == {*Reason, "accepted"}
    assert min(outcomes.values()) > CASES // 1000


def test_accepted_updates_can_be_encoded_again() -> None:
    chance = random.Random(3)
    seeds = honest(5)
    accepted = 0
    for _ in range(3000):
        payload, expected = chance.choice(seeds)
        data = mended(mutated(payload, payload, chance).ljust(HEADER, b"\x00"))
        with contextlib.suppress(MalformedPayload):
            update = decode(data, expected)
            again = encode(update, round=7, client=11)
            assert again == message(update, 7, 11)
            assert_same(decode(again, expected), as_sent(update))
            accepted += 1
    assert accepted > 300


def test_random_bytes_are_refused() -> None:
    chance = random.Random(5)
    expected = Expected(7, 11, 60)
    for _ in range(2000):
        with pytest.raises(MalformedPayload):
            decode(chance.randbytes(chance.randrange(200)), expected)


def test_decoding_memory_stays_near_the_expected_size() -> None:
    chance = random.Random(9)
    seeds = honest(6000)
    tracemalloc.start()
    try:
        for _ in range(400):
            payload, expected = chance.choice(seeds)
            data = mutated(payload, chance.choice(seeds)[0], chance)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(MalformedPayload):
                decode(data, expected)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 2**18 + 6 * dense_size(expected.size, 3)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_past_findings_stay_fixed(file: Path) -> None:
    finding: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    shapes = finding["layout"]
    layout = None if shapes is None else Layout({str(number): tuple(shape) for number, shape in enumerate(shapes)})
    expected = Expected(
        finding["round"],
        finding["client"],
        finding["size"],
        finding["exact_size"],
        getattr(torch, finding["dtype"]),
        layout=layout,
    )
    assert outcome(bytes.fromhex(finding["payload"]), expected) == finding["reason"]
