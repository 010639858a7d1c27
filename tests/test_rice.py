"""Encoding of integers and indices: against plain loops, at the limits of int64, and its length."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_bits import DENSITIES, LENGTHS, entropy_bits, ratio

from hetfl.wire import MalformedPayload, Reason, rice
from hetfl.wire.bits import pack, packed_size, unpack
from hetfl.wire.indices import decode_indices, encode_indices
from tests import wire_by_hand as by_hand

numbers_lists = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**40)), max_size=30)


@pytest.fixture(scope="module", params=["plain", "compiled"], autouse=True)
def _loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test without compiled loops, and with compiled loops for streams of any length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rice, "FEWEST", 2**62 if request.param == "plain" else 0)
        yield


def array(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@given(st.integers(1, 40), st.data())
def test_words_are_packed_lowest_bit_first(bits: int, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=20))
    packed = pack(array(words), bits)
    assert packed.tobytes() == by_hand.bytes_of(by_hand.word_bits(words, bits))
    assert len(packed) == packed_size(len(words), bits)
    assert unpack(packed, len(words), bits).tolist() == words


@pytest.mark.parametrize("bits", [1, 3, 8, 11, 16, 21])
def test_words_are_packed_correctly_across_blocks(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 2**bits, 2**16 + 5)
    packed = pack(words, bits)
    assert np.array_equal(unpack(packed, words.size, bits), words)
    middle = 2**13 - 8  # begins at a byte, and crosses a block's end
    part = by_hand.bytes_of(by_hand.word_bits(words[middle : middle + 16].tolist(), bits))
    assert packed[middle * bits // 8 :][: 2 * bits].tobytes() == part


@settings(max_examples=300)
@given(numbers_lists)
def test_the_encoder_takes_the_parameter_of_the_shortest_stream(numbers: list[int]) -> None:
    parameter, quotients = rice.best_parameter(array(numbers))
    assert parameter == by_hand.best_parameter(numbers)
    assert quotients == sum(number >> parameter for number in numbers)
    stream = rice.encode(array(numbers)).tobytes()
    assert stream == by_hand.rice(numbers)
    assert rice.decode(of(stream), len(numbers), sum(numbers)).tolist() == numbers


@given(st.lists(st.integers(0, 500), max_size=20), st.data())
def test_streams_of_any_parameter_are_decoded(numbers: list[int], data: st.DataObject) -> None:
    parameter = data.draw(st.integers(0, sum(numbers).bit_length()))
    stream = by_hand.rice_with(numbers, parameter)
    assert rice.decode(of(stream), len(numbers), sum(numbers)).tolist() == numbers


@settings(max_examples=1000)
@given(st.integers(0, 6), st.binary(max_size=4), st.integers(0, 9), st.integers(0, 60))
def test_any_bytes_are_decoded_as_by_the_slow_reader(parameter: int, rest: bytes, count: int, most: int) -> None:
    stream = bytes([parameter]) + rest
    want = by_hand.read_rice(stream, count, most)
    if want is None:
        with pytest.raises(MalformedPayload):
            rice.decode(of(stream), count, most)
    else:
        assert rice.decode(of(stream), count, most).tolist() == want


def test_sums_that_overflow_int64_are_refused() -> None:
    ones = bytes([255]) * packed_size(512, 55)
    stream = bytes([55]) + ones + bytes([255]) * 64  # 512 times 2**55 - 1, which is -512 modulo 2**64
    with pytest.raises(MalformedPayload):
        rice.decode(of(stream), 512, 2**55 - 1)
    most = 2**56 - 1
    for number in (0, most):  # the limit itself is read
        stream = by_hand.rice_with([number], 56)
        assert rice.decode(of(stream), 1, most).tolist() == [number]


def test_empty_streams_are_encoded_and_decoded() -> None:
    assert rice.encode(array([])).tolist() == [0]
    assert rice.decode(of(b"\x00"), 0, 5).size == 0
    for stream, count in [(b"", 0), (b"", 1), (b"\x00\x00", 0), (b"\x00", 1)]:
        with pytest.raises(MalformedPayload):
            rice.decode(of(stream), count, 5)


@pytest.mark.parametrize("size", range(11))
def test_every_subset_equals_the_block_by_hand_and_is_no_longer_than_a_bitmap(size: int) -> None:
    for count in range(size + 1):
        for indices in itertools.combinations(range(size), count):
            block = encode_indices(array(list(indices)))
            assert block.tobytes() == by_hand.index_block(indices)
            assert len(block) <= 1 + packed_size(size, 1)
            assert decode_indices(block, count, size).tolist() == list(indices)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 90)), max_size=12))
def test_runs_of_consecutive_indices_are_encoded_as_by_hand(rows: list[tuple[int, int]]) -> None:
    indices: list[int] = []
    end = 0
    for skipped, length in rows:
        indices += range(end + skipped, end + skipped + length)
        end += skipped + length
    block = encode_indices(array(indices))
    assert block.tobytes() == by_hand.index_block(indices)
    for form in (block.tobytes(), by_hand.as_gaps(indices), by_hand.as_runs(indices)):
        assert decode_indices(of(form), len(indices), end).tolist() == indices
        for size in range(max(len(indices), end - 2), end):
            with pytest.raises(MalformedPayload):
                decode_indices(of(form), len(indices), size)


def runs_block(number: int, between: bytes, lengths: bytes) -> bytes:
    return struct.pack("<BQQ", 255, number, len(between)) + between + lengths


@pytest.mark.parametrize(
    ("block", "count", "size"),
    [
        (b"", 1, 9),
        (b"\xff", 1, 9),
        (b"\xff" * 17, 1, 9),
        (bytes(17), 1, 9),
        (runs_block(0, b"\x00", b"\x00"), 1, 9),  # no runs, one index
        (runs_block(2, by_hand.rice([0, 0]), by_hand.rice([0, 0])), 3, 9),  # lengths of 2
        (runs_block(2, by_hand.rice([5, 1]), by_hand.rice([0, 0])), 2, 8),  # 5 and 8, of 0 to 7
        (runs_block(2**64 - 1, b"\x00", b"\x00"), 3, 9),
        (runs_block(1, b"", by_hand.rice([0])), 1, 9),
        (runs_block(1, by_hand.rice([0]), b""), 1, 9),
    ],
)
def test_malformed_index_blocks_are_refused(block: bytes, count: int, size: int) -> None:
    with pytest.raises(MalformedPayload) as caught:
        decode_indices(of(block), count, size)
    assert caught.value.reason is Reason.INDICES


def test_decoding_a_short_block_of_many_indices_takes_little_memory() -> None:
    size = 500_000
    blocks = {"runs": encode_indices(np.arange(size)), "gaps": of(by_hand.rice_with([0] * size, 0))}
    assert len(blocks["runs"]) < 40
    for block in blocks.values():
        tracemalloc.start()
        last = decode_indices(block, size, size)[-1]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert last == size - 1
        assert peak < 26 * size


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("density", DENSITIES)
def test_encoded_indices_are_near_their_entropy(length: int, density: float) -> None:
    assert 1 <= ratio(length, density, draws=40 if length == 10_000 else 2) <= 1.15


def test_entropy_of_a_small_case_by_hand() -> None:
    assert entropy_bits(6, 2) == pytest.approx(np.log2(15))


def test_the_search_for_a_parameter_takes_little_memory_without_compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).geometric(0.01, size=100_000) - 1
    best = rice.best_parameter(numbers)
    monkeypatch.setattr(rice, "is_compiled", lambda count: False)
    monkeypatch.setattr(rice, "FEWEST", 1 << 10)
    tracemalloc.start()
    try:
        assert rice.best_parameter(numbers) == best
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * numbers.nbytes
