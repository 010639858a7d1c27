"""Blocks of codes: their values, their layout, and refused blocks."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hetfl.codes import VALUES_OF_A_TABLE, Codes, bucket_sizes
from hetfl.errors import RefusedUpdate
from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update
from hetfl.wire import Expected, MalformedPayload, Reason, decode, encode
from hetfl.wire.bits import pack, unpack
from tests import wire_by_hand as by_hand
from tests.wire_cases import CLIENT, LAYOUT, ROUND, assert_same, cases, expect, one_of_each, quantised

DENSE = quantised(DenseUpdate(torch.ones(10)), 5, 4)  # 50 bits: 6 bits of the last byte are unused; 3 buckets, 1 zero
BLOCK = by_hand.HEADER


def payload_of(update: Update) -> bytes:
    return encode(update, round=ROUND, client=CLIENT)


def reason_of(data: bytes, expected: Expected) -> Reason:
    with pytest.raises(MalformedPayload) as caught:
        decode(by_hand.mended(data), expected)
    return caught.value.reason


@settings(max_examples=300)
@given(cases())
def test_codes_decode_by_the_documented_formula(case: tuple[Update, Layout, bool]) -> None:
    codes = case[0].codes
    if codes is not None:
        assert codes.to_float().tolist() == by_hand.code_values(codes)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 24, 8193])
def test_packed_words_are_their_bits_in_a_row(bits: int, count: int) -> None:
    words = np.random.default_rng(bits).integers(0, 1 << bits, count)
    row = "".join(format(word, f"0{bits}b")[::-1] for word in words)
    by_bytes = [int(row[at : at + 8][::-1], 2) for at in range(0, len(row), 8)]
    packed = pack(words, bits)
    assert packed.tolist() == by_bytes
    assert unpack(packed, count, bits).tolist() == words.tolist()


@pytest.mark.parametrize("bits", [2, 8])
def test_logarithmic_codes_of_many_buckets_decode_by_the_documented_formula(bits: int) -> None:
    count = 2 * (VALUES_OF_A_TABLE >> bits) + 1  # buckets of one or two values: more than two tables
    random = torch.Generator().manual_seed(bits)
    sizes = torch.randint(1, 3, (count,), generator=random)
    words = torch.randint(1 << bits, (int(sizes.sum()),), generator=random, dtype=torch.int32)
    least, ratios = torch.rand(count, generator=random) + 0.1, 1 + torch.rand(count, generator=random) / 16
    codes = Codes(words, bits, ratios, least, sizes, 0, "logarithmic")
    assert codes.to_float().tolist() == by_hand.code_values(codes)


@pytest.mark.parametrize(("count", "bucket"), [(0, 3), (1, 3), (3, 3), (10, 4), (5, 2**32 - 1)])
def test_sizes_of_buckets_equal_a_loop(count: int, bucket: int) -> None:
    want = [min(bucket, count - start) for start in range(0, count, bucket)]
    assert bucket_sizes(count, bucket).tolist() == want


def altered(offset: int, replacement: bytes, update: Update = DENSE) -> bytes:
    payload = payload_of(update)
    return payload[:offset] + replacement + payload[offset + len(replacement) :]


@pytest.mark.parametrize(
    ("offset", "replacement", "reason"),
    [
        (BLOCK, b"\x00", Reason.FORMAT),
        (BLOCK, b"\x11", Reason.FORMAT),
        (BLOCK, b"\x06", Reason.LENGTH),
        (BLOCK + 1, b"\x02", Reason.FORMAT),
        (BLOCK + 1, b"\x01", Reason.LENGTH),
        (BLOCK + 2, b"\x02", Reason.FORMAT),
        (BLOCK + 2, b"\x01", Reason.VALUES),  # logarithmic codes, whose magnitudes would not ascend
        (BLOCK + 4, struct.pack("<I", 0), Reason.FORMAT),  # one bucket per tensor, without a layout
        (BLOCK + 4, struct.pack("<I", 1), Reason.LENGTH),
        (BLOCK + 4, struct.pack("<I", 2**32 - 1), Reason.LENGTH),
        (BLOCK + 8, struct.pack("<f", float("nan")), Reason.VALUES),  # the zero point
        (BLOCK + 12, struct.pack("<f", float("-inf")), Reason.VALUES),  # a scale
        (BLOCK + 12, struct.pack("<f", 3e38), Reason.VALUES),  # finite, but its values overflow
        (-1, b"\x04", Reason.VALUES),  # bits after the last code
        (-1, b"\x80", Reason.VALUES),
    ],
)
def test_each_field_of_the_code_block_is_checked(offset: int, replacement: bytes, reason: Reason) -> None:
    payload = payload_of(DENSE)
    assert reason_of(altered(offset % len(payload), replacement), expect(DENSE)) is reason


def test_unused_scales_must_be_finite() -> None:
    layout = Layout({"empty": (0,), "w": (3,)})
    codes = Codes(torch.zeros(3).int(), 2, torch.ones(2), torch.ones(2), torch.tensor([0, 3]), 0)
    update = DenseUpdate(torch.ones(3)).with_codes(codes)
    assert_same(decode(payload_of(update), expect(update, layout)), update)
    for offset in (8, 16):
        assert reason_of(altered(BLOCK + offset, b"\x00\x00\xc0\x7f", update), expect(update, layout)) is Reason.VALUES


def test_a_bucket_per_tensor_without_tensors_is_refused_as_malformed() -> None:
    head = struct.pack("<4sBBBBIQQQQQ", b"HTFL", 2, 0, 3, 1, ROUND, CLIENT, 3, 3, 0, 0)
    block = struct.pack("<BBHIf", 1, 0, 0, 0, 0.5) + b"\x05"  # a zero point, no scales, three codes
    assert reason_of(head + bytes(4) + block, Expected(ROUND, CLIENT, 3)) is Reason.FORMAT


@pytest.mark.parametrize("name", ["low_rank/16", "seeded/16", "gaps/16"])
def test_buckets_per_tensor_follow_the_support(name: str) -> None:
    update = one_of_each()[name]
    assert update.codes is not None
    got = decode(payload_of(update), expect(update, LAYOUT))
    assert got.codes is not None
    assert got.codes.sizes.tolist() == got.num_sent_per_tensor(LAYOUT).tolist()


def test_decoded_code_values_have_the_requested_dtype() -> None:
    update = DENSE.with_values(DENSE.values.double()).with_codes(DENSE.codes, torch.float64)  # type: ignore[arg-type]
    assert_same(decode(payload_of(DENSE), expect(DENSE, dtype=torch.float64)), update.with_exact(torch.empty(0)))


def test_codes_ignore_half_precision() -> None:
    assert encode(DENSE, round=ROUND, client=CLIENT, half_precision=True) == payload_of(DENSE)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"codes": torch.tensor([0, 4])}, ValueError, r"client 17's codes in \[0, 4\) but got 0 to 4"),
        ({"codes": torch.tensor([-1, 0])}, ValueError, "but got -1 to 0"),
        ({"bucket": 1}, ValueError, "buckets to have 1 entries"),
        ({"scales": torch.tensor([float("inf")])}, RefusedUpdate, "client 17's values"),
        ({"scales": torch.tensor([3e38])}, RefusedUpdate, "client 17's values"),
    ],
)
def test_invalid_codes_are_not_encoded(changes: dict[str, object], error: type[ValueError], words: str) -> None:
    sizes = torch.tensor([2])
    codes = Codes(torch.tensor([3, 1]), 2, torch.ones(1), torch.tensor([0.5]), sizes, 2)
    with pytest.raises(error, match=words):
        payload_of(DenseUpdate(torch.ones(2)).with_codes(replace(codes, **changes)))  # type: ignore[arg-type]


def test_scales_without_codes_and_missing_codes_are_not_encoded() -> None:
    sizes = torch.tensor([0, 2])
    codes = Codes(torch.tensor([3, 1]), 2, torch.tensor([float("nan"), 1.0]), torch.tensor([0.5]), sizes, 0)
    with pytest.raises(RefusedUpdate, match="finite scales from client 17"):
        payload_of(DenseUpdate(torch.ones(2)).with_codes(codes))
    with pytest.raises(ValueError, match="send 2 values, one per code, but got 3"):
        payload_of(replace(DenseUpdate(torch.ones(3)), codes=replace(codes, scales=torch.ones(2))))


@pytest.mark.parametrize(
    "changes",
    [{"bits": 0}, {"bits": 17}, {"bucket": -1}, {"bucket": 2**32}, {"scales": torch.ones(3)}, {"zeros": torch.ones(3)}],
)
def test_inconsistent_code_fields_are_refused(changes: dict[str, object]) -> None:
    codes = Codes(torch.tensor([3, 1]), 2, torch.ones(2), torch.ones(2), torch.tensor([1, 1]), 1)
    with pytest.raises(ValueError, match=r"Expected .* but got"):
        replace(codes, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buckets of 2 codes but got 3"):
        replace(codes, sizes=torch.tensor([1, 2]))


def test_decoding_the_largest_messages_takes_little_memory() -> None:
    """The memory that NumPy allocates for decoding."""
    size = 200_000
    layout = Layout({"w": (size // 2, 1), "v": (size // 2, 1)})
    positions = SeededUpdate.positions(1, [size], [size])
    entries = torch.randperm(size, generator=torch.Generator().manual_seed(0))[: size // 2].sort().values
    updates: list[Update] = [
        DenseUpdate(torch.ones(size)),
        SparseUpdate(torch.ones(size), torch.arange(size), size),
        SparseUpdate(torch.ones(size // 2), entries, size),
        SeededUpdate(torch.ones(size), positions, size, 1, (size,)),
        LowRankUpdate(torch.ones(size + 2), layout, (1, 1)),
    ]
    for update in updates:
        for sent in (update, quantised(update, 15, 1), quantised(update, 1, 2**32 - 1)):
            data = payload_of(sent)
            tracemalloc.start()
            decode(data, expect(sent, layout))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**18 + 6 * 4 * size, type(update)


def test_numpy_and_torch_round_alike() -> None:
    generator = np.random.default_rng(0)
    numbers = torch.from_numpy(generator.integers(0, 2**16, 500).astype(np.int32))
    scales, zeros = (torch.from_numpy(generator.standard_normal(500).astype(np.float32)) for _ in range(2))
    codes = Codes(numbers, 16, scales, zeros, torch.ones(500, dtype=torch.int64), 1)
    assert codes.to_float().tolist() == by_hand.code_values(codes)
