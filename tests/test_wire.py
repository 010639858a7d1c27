"""Bytes on the wire: round trips, the exact layout, what is refused and why."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetfl.types import DenseUpdate, SparseUpdate, Update
from hetfl.wire import Expected, MalformedPayload, Reason, decode, dense_size, encode

HEADER = 56
FLOATS = {torch.float16: ("e", 0), torch.float32: ("f", 1), torch.float64: ("d", 2)}

NUMBERS = {
    torch.float16: st.floats(width=16, allow_nan=False, allow_infinity=False),
    torch.float32: st.floats(width=32, allow_nan=False, allow_infinity=False),
    torch.float64: st.floats(width=64, allow_nan=False, allow_infinity=False),
}


def leb128(number: int) -> bytes:
    """One varint at a time, by the book."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def by_hand(update: Update, round: int, client: int) -> bytes:
    """The layout of hetfl.wire's docstring, written out without any of its code."""
    assert isinstance(update, DenseUpdate | SparseUpdate)
    letter, code = FLOATS[update.values.dtype]
    exact_letter, exact_code = FLOATS[update.exact.dtype if len(update.exact) else torch.float32]
    indices, previous = b"", -1
    if isinstance(update, SparseUpdate):
        for index in update.indices.tolist():
            indices += leb128(index - previous - 1)
            previous = index
    values, exact = update.values.tolist(), update.exact.tolist()
    kind = int(isinstance(update, SparseUpdate))
    head = b"HTFL" + bytes([1, kind, code, exact_code]) + struct.pack("<IQ", round, client)
    head += struct.pack("<QQQQ", update.size, len(values), len(exact), len(indices))
    body = (
        indices + struct.pack(f"<{len(values)}{letter}", *values) + struct.pack(f"<{len(exact)}{exact_letter}", *exact)
    )
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def expect(update: Update, **changes: object) -> Expected:
    assert isinstance(update, DenseUpdate | SparseUpdate)
    expected = Expected(3, 17, update.size, update.exact.numel(), update.values.dtype, update.exact.dtype)
    return replace(expected, **changes)  # type: ignore[arg-type]


def assert_same(got: Update, want: Update) -> None:
    assert isinstance(got, DenseUpdate | SparseUpdate)
    assert isinstance(want, DenseUpdate | SparseUpdate)
    assert type(got) is type(want)
    assert got.size == want.size
    assert got.values.dtype == want.values.dtype
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.exact, want.exact)
    if isinstance(got, SparseUpdate):
        assert isinstance(want, SparseUpdate)
        assert torch.equal(got.indices, want.indices)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    dtype = draw(st.sampled_from(list(FLOATS)))
    numbers = NUMBERS[dtype]
    exact_dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    exact = torch.tensor(draw(st.lists(st.floats(-1e3, 1e3, width=32), max_size=4)), dtype=exact_dtype)
    if draw(st.booleans()):
        return DenseUpdate(torch.tensor(draw(st.lists(numbers, max_size=20)), dtype=dtype), exact=exact)
    size = draw(st.sampled_from([0, 1, 2, 127, 128, 129, 16_384, 16_385, 3_000_000, 2**40]))
    indices = sorted(draw(st.sets(st.integers(0, size - 1), max_size=12))) if size else []
    values = draw(st.lists(numbers, min_size=len(indices), max_size=len(indices)))
    return SparseUpdate(size, torch.tensor(indices, dtype=torch.int64), torch.tensor(values, dtype=dtype), exact=exact)


@settings(deadline=None, max_examples=300)
@given(updates())
def test_round_trip_and_layout(update: Update) -> None:
    payload = encode(update, round=3, client=17)
    assert payload == by_hand(update, 3, 17)
    assert_same(decode(payload, expect(update)), update)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_size_is_the_length_of_the_encoding(dtype: torch.dtype) -> None:
    for size, exact_size in [(0, 0), (1, 0), (1000, 0), (1000, 7)]:
        update = DenseUpdate(torch.ones(size, dtype=dtype), exact=torch.ones(exact_size, dtype=dtype))
        assert len(encode(update, round=0, client=0)) == dense_size(size, exact_size, dtype.itemsize)


def test_every_index_and_long_gaps_come_back() -> None:
    generator = np.random.default_rng(0)
    for size, count in [(50_000, 50_000), (50_000, 500), (2**33, 2000), (1, 1)]:
        chosen = np.arange(size) if count == size else np.unique(generator.integers(0, size, count))
        update = SparseUpdate(size, torch.from_numpy(chosen), torch.ones(chosen.size))
        assert_same(decode(encode(update, round=3, client=17), expect(update)), update)


def test_half_precision_halves_the_values_and_is_widened() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([1 + 2**-20])
    update = DenseUpdate(values, exact=exact)
    payload = encode(update, round=3, client=17, half_precision=True)
    assert len(payload) == HEADER + 2 * 100 + 4
    assert_same(decode(payload, expect(update)), DenseUpdate(values.half().float(), exact=exact))


def test_decoded_tensors_own_their_memory() -> None:
    update = SparseUpdate(9, torch.tensor([1, 5]), torch.tensor([2.0, 3.0]))
    payload = encode(update, round=3, client=17)
    got = decode(payload, expect(update))
    assert isinstance(got, SparseUpdate)
    got.values.zero_()
    assert_same(decode(payload, expect(update)), update)


def test_float16_overflow_is_refused_naming_the_client() -> None:
    with pytest.raises(ValueError, match=r"client 17's values to be finite as torch.float16 but got .* 70000"):
        encode(DenseUpdate(torch.tensor([1.0, -7e4])), round=0, client=17, half_precision=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_not_encoded(bad: float) -> None:
    with pytest.raises(ValueError, match="client 4's values"):
        encode(DenseUpdate(torch.tensor([1.0, bad])), round=0, client=4)
    with pytest.raises(ValueError, match="client 4's exact block"):
        encode(DenseUpdate(torch.ones(2), exact=torch.tensor([bad])), round=0, client=4)


@pytest.mark.parametrize("indices", [[0, 0], [2, 1], [-1, 2], [0, 5]])
def test_bad_indices_are_not_encoded(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="increase strictly"):
        encode(SparseUpdate(5, torch.tensor(indices), torch.ones(2)), round=0, client=4)


def test_other_encoding_errors() -> None:
    with pytest.raises(ValueError, match="one per index"):
        encode(SparseUpdate(5, torch.tensor([1]), torch.ones(2)), round=0, client=4)
    with pytest.raises(ValueError, match="bfloat16"):
        encode(DenseUpdate(torch.ones(2, dtype=torch.bfloat16)), round=0, client=4)
    with pytest.raises(ValueError, match="but got round -1"):
        encode(DenseUpdate(torch.ones(2)), round=-1, client=4)


SPARSE = SparseUpdate(1000, torch.tensor([3, 4, 700]), torch.tensor([1.0, 2.0, 3.0]), exact=torch.ones(2))
DENSE = DenseUpdate(torch.arange(5.0), exact=torch.ones(2))


def altered(payload: bytes, offset: int, replacement: bytes, mend: bool = True) -> bytes:
    data = bytearray(payload)
    data[offset : offset + len(replacement)] = replacement
    if mend:
        data[52:56] = struct.pack("<I", zlib.crc32(data[:52] + data[56:]))
    return bytes(data)


def long(number: int) -> bytes:
    return struct.pack("<Q", number)


@pytest.mark.parametrize(
    ("update", "offset", "replacement", "reason"),
    [
        (SPARSE, 0, b"HTFM", Reason.FORMAT),
        (SPARSE, 4, b"\x02", Reason.FORMAT),
        (SPARSE, 5, b"\x02", Reason.FORMAT),
        (SPARSE, 5, b"\x00", Reason.COUNT),
        (SPARSE, 6, b"\x02", Reason.DTYPE),
        (SPARSE, 6, b"\x09", Reason.DTYPE),
        (SPARSE, 7, b"\x02", Reason.DTYPE),
        (SPARSE, 8, b"\x04", Reason.ROUND),
        (SPARSE, 12, long(18), Reason.CLIENT),
        (SPARSE, 20, long(1001), Reason.SIZE),
        (SPARSE, 28, long(1001), Reason.COUNT),
        (SPARSE, 28, long(2**64 - 1), Reason.COUNT),
        (SPARSE, 28, long(2), Reason.LENGTH),
        (SPARSE, 36, long(3), Reason.COUNT),
        (SPARSE, 44, long(2), Reason.LENGTH),
        (SPARSE, 44, long(2**63), Reason.LENGTH),
        (SPARSE, 56, b"\xff\x7f", Reason.INDICES),  # two varints, not three
        (SPARSE, 58, b"\xff\x07", Reason.INDICES),  # past the end
        (SPARSE, 58, b"\x84\x80", Reason.INDICES),  # does not end
        (SPARSE, 58, b"\x84\x00", Reason.INDICES),  # overlong
        (SPARSE, 60, struct.pack("<f", float("nan")), Reason.VALUES),
        (SPARSE, 68, struct.pack("<f", float("-inf")), Reason.VALUES),
        (SPARSE, 72, struct.pack("<f", float("inf")), Reason.VALUES),
        (DENSE, 5, b"\x01", Reason.LENGTH),
        (DENSE, 28, long(4), Reason.COUNT),
        (DENSE, 44, long(1), Reason.LENGTH),
        (DENSE, 56, struct.pack("<f", float("nan")), Reason.VALUES),
    ],
)
def test_each_field_is_checked(update: Update, offset: int, replacement: bytes, reason: Reason) -> None:
    payload = encode(update, round=3, client=17)
    assert len(payload) in (80, 84)  # the offsets above count on it
    with pytest.raises(MalformedPayload) as caught:
        decode(altered(payload, offset, replacement), expect(update))
    assert caught.value.reason is reason
    assert "\n" not in str(caught.value)


def test_every_single_flipped_bit_is_refused() -> None:
    for update in (SPARSE, DENSE):
        payload = encode(update, round=3, client=17)
        for bit in range(8 * len(payload)):
            flipped = altered(payload, bit // 8, bytes([payload[bit // 8] ^ 1 << bit % 8]), mend=False)
            with pytest.raises(MalformedPayload):
                decode(flipped, expect(update))


def test_every_wrong_length_is_refused() -> None:
    for update in (SPARSE, DENSE):
        payload = encode(update, round=3, client=17)
        for length in range(len(payload)):
            with pytest.raises(MalformedPayload) as caught:
                decode(payload[:length], expect(update))
            assert caught.value.reason is Reason.LENGTH
        with pytest.raises(MalformedPayload):
            decode(payload + b"\x00", expect(update))


@pytest.mark.parametrize(
    ("size", "count", "indices", "reason"),
    [
        (2**62, 3, leb128(2**62 - 1) * 3, Reason.INDICES),  # the sum leaves int64
        (2000, 1, b"\x83" + b"\x80" * 9 + b"\x01", Reason.INDICES),  # so does one varint: 3 + 2**70
        (2000, 1, b"\x83\x80\x80\x01", Reason.INDICES),  # longer than any index below 2000
        (2000, 1, b"\x05\x80", Reason.INDICES),  # a byte after the last
        (1282, 3, b"\x80" * 9 + b"\x01" * 3, Reason.INDICES),  # the most bytes that three indices can take ...
        (1282, 3, b"\x80" * 10 + b"\x01" * 3, Reason.LENGTH),  # ... and one more, refused before it is read
    ],
)
def test_index_blocks_that_no_encoder_makes(size: int, count: int, indices: bytes, reason: Reason) -> None:
    head = struct.pack("<4sBBBBIQQQQQ", b"HTFL", 1, 1, 1, 1, 3, 17, size, count, 0, len(indices))
    body = indices + struct.pack(f"<{count}f", *range(count))
    with pytest.raises(MalformedPayload) as caught:
        decode(head + struct.pack("<I", zlib.crc32(head + body)) + body, Expected(3, 17, size))
    assert caught.value.reason is reason


def test_what_the_server_allows_is_the_limit() -> None:
    payload = encode(SPARSE, round=3, client=17)
    assert_same(decode(payload, expect(SPARSE, max_count=3)), SPARSE)
    with pytest.raises(MalformedPayload, match="at most 2 values from client 17 but got 3"):
        decode(payload, expect(SPARSE, max_count=2))
    with pytest.raises(MalformedPayload, match="dtype"):
        decode(payload, expect(SPARSE, dtype=torch.float64, exact_dtype=torch.float32))
    with pytest.raises(MalformedPayload, match="dtype"):
        decode(payload, expect(SPARSE, exact_dtype=torch.float64))
    with pytest.raises(MalformedPayload, match="exact count 1 from client 17 but got 2"):
        decode(payload, expect(SPARSE, exact_size=1))
