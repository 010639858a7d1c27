"""The wire format: round trips, the exact layout, and the reasons of refusals."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update
from hetfl.wire import Expected, MalformedPayload, Reason, as_sent, decode, dense_size, encode
from tests.wire_by_hand import HEADER, mended, message
from tests.wire_cases import CLIENT, LAYOUT, ROUND, assert_same, cases, expect, one_of_each

EACH = one_of_each()
PAYLOADS = {name: encode(update, round=ROUND, client=CLIENT) for name, update in EACH.items()}


def refusal(data: bytes, expected: Expected) -> Reason:
    with pytest.raises(MalformedPayload) as caught:
        decode(data, expected)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def altered(payload: bytes, offset: int, replacement: bytes) -> bytes:
    return mended(payload[:offset] + replacement + payload[offset + len(replacement) :])


def long(number: int) -> bytes:
    return struct.pack("<Q", number)


@settings(max_examples=400)
@given(cases())
def test_every_update_survives_encoding_with_the_documented_bytes(case: tuple[Update, Layout, bool]) -> None:
    update, layout, half = case
    payload = encode(update, round=ROUND, client=CLIENT, half_precision=half)
    assert payload == message(update, ROUND, CLIENT, half)
    got = decode(payload, expect(update, layout))
    assert_same(got, as_sent(update, half))
    assert_same(as_sent(got, half), got)


@pytest.mark.parametrize("name", EACH)
def test_a_fixed_update_of_every_kind_survives_encoding(name: str) -> None:
    assert PAYLOADS[name] == message(EACH[name], ROUND, CLIENT)
    assert_same(decode(PAYLOADS[name], expect(EACH[name], LAYOUT)), EACH[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_size_is_the_length_of_the_encoding(dtype: torch.dtype) -> None:
    for size, exact_size in [(0, 0), (1, 0), (1000, 0), (1000, 7)]:
        update = DenseUpdate(torch.ones(size, dtype=dtype), exact=torch.ones(exact_size, dtype=dtype))
        assert len(encode(update, round=0, client=0)) == dense_size(size, exact_size, dtype.itemsize)


def test_every_index_and_long_gaps_are_decoded() -> None:
    generator = np.random.default_rng(0)
    for size, count in [(50_000, 50_000), (50_000, 500), (2**33, 2000), (2**55, 3), (1, 1), (0, 0)]:
        chosen = np.arange(size) if count == size else np.unique(generator.integers(0, size, count))
        update = SparseUpdate(torch.ones(chosen.size), torch.from_numpy(chosen), size)
        assert_same(decode(encode(update, round=ROUND, client=CLIENT), expect(update)), update)


def test_half_precision_values_take_half_the_bytes_and_decode_to_float32() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([1 + 2**-20])
    update = DenseUpdate(values, exact=exact)
    payload = encode(update, round=ROUND, client=CLIENT, half_precision=True)
    assert len(payload) == HEADER + 2 * 100 + 4
    assert_same(decode(payload, expect(update)), DenseUpdate(values.half().float(), exact=exact))


@pytest.mark.parametrize("name", EACH)
def test_decoded_tensors_do_not_share_the_payloads_memory(name: str) -> None:
    got = decode(PAYLOADS[name], expect(EACH[name], LAYOUT))
    for tensor in (got.values, got.exact, got.indices if isinstance(got, SparseUpdate) else got.values):
        tensor.zero_()
    assert_same(decode(PAYLOADS[name], expect(EACH[name], LAYOUT)), EACH[name])


def test_products_may_have_more_values_than_entries() -> None:
    layout = Layout({"w": (4, 1), "square": (3, 3)})
    update = LowRankUpdate(torch.ones(5 + 18), layout, (1, 3))
    assert_same(decode(encode(update, round=ROUND, client=CLIENT), expect(update, layout)), update)
    assert refusal(encode(update, round=ROUND, client=CLIENT), expect(update, layout, max_count=22)) is Reason.COUNT


@pytest.mark.parametrize(
    ("name", "offset", "replacement", "reason"),
    [
        ("gaps", 0, b"HTFM", Reason.FORMAT),
        ("gaps", 4, b"\x01", Reason.FORMAT),
        ("gaps", 5, b"\x04", Reason.FORMAT),
        ("gaps", 5, b"\x00", Reason.COUNT),
        ("gaps", 5, b"\x02", Reason.LENGTH),  # a seed of 8 bytes and counts
        ("gaps", 6, b"\x02", Reason.DTYPE),
        ("gaps", 6, b"\x09", Reason.DTYPE),
        ("gaps", 6, b"\x00", Reason.LENGTH),
        ("gaps", 7, b"\x02", Reason.DTYPE),
        ("gaps", 8, b"\x04", Reason.ROUND),
        ("gaps", 12, long(18), Reason.CLIENT),
        ("gaps", 20, long(208), Reason.SIZE),
        ("gaps", 28, long(208), Reason.COUNT),
        ("gaps", 28, long(2**64 - 1), Reason.COUNT),
        ("gaps", 28, long(4), Reason.LENGTH),
        ("gaps", 36, long(3), Reason.COUNT),
        ("gaps", 44, long(2), Reason.LENGTH),
        ("gaps", 44, long(32 + 51 + 4 * 5 + 1), Reason.LENGTH),
        ("gaps", 44, long(2**63), Reason.LENGTH),
        ("gaps", 56, b"\x06", Reason.INDICES),
        ("gaps", 56, b"\xff", Reason.INDICES),
        ("gaps", -12, struct.pack("<f", float("nan")), Reason.VALUES),
        ("gaps", -4, struct.pack("<f", float("inf")), Reason.VALUES),
        ("dense", 5, b"\x01", Reason.INDICES),
        ("dense", 5, b"\x03", Reason.LENGTH),
        ("dense", 28, long(206), Reason.COUNT),
        ("dense", 44, long(1), Reason.LENGTH),
        ("dense", 56, struct.pack("<f", float("nan")), Reason.VALUES),
        ("runs", 57, long(158), Reason.INDICES),  # more runs than indices
        ("runs", 57, long(1), Reason.INDICES),
        ("runs", 65, long(0), Reason.INDICES),  # an empty first stream
        ("runs", 65, long(4), Reason.INDICES),  # an empty second stream
        ("runs", 65, long(2**64 - 1), Reason.INDICES),
        ("seeded", 64, long(4), Reason.COUNT),  # a wrong sum
        ("seeded", 64, long(7) + long(2**64 - 2), Reason.COUNT),  # the sum is right modulo 2^64
        ("seeded", 64, long(2) + long(2) + long(2), Reason.COUNT),  # of a tensor of one entry
        ("low_rank", 56, b"\x0b\x00", Reason.COUNT),  # rank 11 of a 20 x 10 matrix
        ("low_rank", 56, b"\x01\x00", Reason.COUNT),  # too few values
        ("low_rank", 56, b"\x02\x00\x02\x00", Reason.COUNT),
    ],
)
def test_each_field_is_checked(name: str, offset: int, replacement: bytes, reason: Reason) -> None:
    payload = PAYLOADS[name]
    data = altered(payload, offset % len(payload), replacement)
    assert refusal(data, expect(EACH[name], LAYOUT)) is reason


@pytest.mark.parametrize("name", EACH)
def test_every_flipped_bit_is_refused(name: str) -> None:
    payload, expected = PAYLOADS[name], expect(EACH[name], LAYOUT)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        refusal(bytes(flipped), expected)


@pytest.mark.parametrize("name", EACH)
def test_every_wrong_length_is_refused(name: str) -> None:
    payload, expected = PAYLOADS[name], expect(EACH[name], LAYOUT)
    for length in range(len(payload)):
        assert refusal(payload[:length], expected) is Reason.LENGTH
        if length >= HEADER:
            assert refusal(mended(payload[:length]), expected) is Reason.LENGTH
    assert refusal(payload + b"\x00", expected) is Reason.LENGTH


def test_payloads_above_the_servers_limits_are_refused() -> None:
    for name in ("gaps", "seeded", "low_rank"):
        update, payload = EACH[name], PAYLOADS[name]
        assert_same(decode(payload, expect(update, LAYOUT, max_count=update.num_sent)), update)
        assert refusal(payload, expect(update, LAYOUT, max_count=update.num_sent - 1)) is Reason.COUNT
    update, payload = EACH["gaps"], PAYLOADS["gaps"]
    others: list[tuple[dict[str, object], Reason]] = [
        ({"dtype": torch.float64, "exact_dtype": torch.float32}, Reason.DTYPE),
        ({"exact_dtype": torch.float64}, Reason.DTYPE),
        ({"exact_size": 1}, Reason.COUNT),
        ({"size": 208}, Reason.SIZE),
    ]
    for changes, reason in others:
        assert refusal(payload, replace(expect(update), **changes)) is reason  # type: ignore[arg-type]


def test_seeded_counts_select_the_entries_of_each_tensor() -> None:
    got = decode(altered(PAYLOADS["seeded"], 64, long(0) + long(5) + long(1)), expect(EACH["seeded"], LAYOUT))
    assert got.num_sent_per_tensor(LAYOUT).tolist() == [0, 5, 1]
    assert got.to_dense().count_nonzero() == 5  # the first value is 0


def test_payloads_with_fields_per_tensor_need_a_layout() -> None:
    reasons = {"low_rank": Reason.LENGTH, "seeded": Reason.LENGTH, "dense/16": Reason.FORMAT, "gaps/16": Reason.FORMAT}
    for name, reason in reasons.items():
        assert refusal(PAYLOADS[name], expect(EACH[name])) is reason
    for name in ("dense", "gaps", "runs", "dense/5", "gaps/5"):
        assert_same(decode(PAYLOADS[name], expect(EACH[name])), EACH[name])
    whole = SeededUpdate(torch.ones(4), SeededUpdate.positions(9, [207], [4]), 207, 9, (4,))
    assert_same(decode(encode(whole, round=ROUND, client=CLIENT), expect(whole)), whole)


def test_a_low_rank_product_that_overflows_is_refused() -> None:
    layout = Layout({"w": (2, 2)})
    update = LowRankUpdate(torch.full((4,), 1e30), layout, (1,))
    assert refusal(encode(update, round=ROUND, client=CLIENT), expect(update, layout)) is Reason.VALUES


def refuse_to_encode(update: Update, words: str, **options: object) -> None:
    with pytest.raises(ValueError, match=words):
        encode(update, **{"round": 0, "client": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_not_encoded(bad: float) -> None:
    refuse_to_encode(DenseUpdate(torch.tensor([1.0, bad])), "client 4's values")
    refuse_to_encode(DenseUpdate(torch.ones(2), exact=torch.tensor([bad])), "client 4's exact block")
    refuse_to_encode(
        DenseUpdate(torch.tensor([1.0, -7e4])), r"finite as torch.float16 but got .* 70000", half_precision=True
    )


@pytest.mark.parametrize("indices", [[0, 0], [2, 1], [-1, 2], [0, 5]])
def test_bad_indices_are_not_encoded(indices: list[int]) -> None:
    refuse_to_encode(SparseUpdate(torch.ones(2), torch.tensor(indices), 5), "increase strictly")


def test_invalid_updates_are_not_encoded() -> None:
    refuse_to_encode(SparseUpdate(torch.ones(2), torch.tensor([1]), 5), "send 1 values, one per index, but got 2")
    refuse_to_encode(DenseUpdate(torch.ones(2, dtype=torch.bfloat16)), "bfloat16")
    refuse_to_encode(DenseUpdate(torch.ones(2)), "but got round -1", round=-1)
    refuse_to_encode(DenseUpdate(torch.ones(2)), "client 18446744073709551616", client=2**64)
    seeded, low_rank = EACH["seeded"], EACH["low_rank"]
    assert isinstance(seeded, SeededUpdate)
    assert isinstance(low_rank, LowRankUpdate)
    refuse_to_encode(replace(seeded, counts=(3, 2, 2)), "7 values, as its counts say")
    refuse_to_encode(replace(seeded, counts=(3, 4, -1)), "counts from 0")
    refuse_to_encode(replace(seeded, seed=2**64), "seed in")
    refuse_to_encode(replace(low_rank, ranks=(2, 0, 0)), "67 values, as its ranks ask for")
    refuse_to_encode(replace(low_rank, ranks=(11, 0, 1)), "ranks of client 4")


def test_indices_of_every_kind_are_ascending_and_within_the_vector() -> None:
    for name in ("gaps", "runs", "seeded"):
        got = decode(PAYLOADS[name], expect(EACH[name], LAYOUT))
        assert isinstance(got, SparseUpdate)
        assert all(before < after for before, after in pairwise([-1, *got.indices.tolist(), 207]))
