"""The permutation that a seed selects: equal to plain loops, bijective, fixed for all versions, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from hetfl.permutation import chosen, mix, permuted
from tests import wire_by_hand as by_hand

seeds = st.integers(0, 2**64 - 1)


@given(seeds)
def test_mix_equals_splitmix64(word: int) -> None:
    assert int(mix(np.array([word], dtype=np.uint64))[0]) == by_hand.mix(word)


def test_splitmix64_equals_its_published_numbers() -> None:
    state = [(0x9E3779B97F4A7C15 * (number + 1)) % 2**64 for number in range(3)]
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(np.array(state, dtype=np.uint64)).tolist() == want


@given(st.integers(1, 2**60), seeds)
def test_positions_equal_the_computation_by_hand(size: int, seed: int) -> None:
    positions = sorted({0, size // 2, size - 1, min(size - 1, 7)})
    got = permuted(np.array(positions, dtype=np.uint64), size, seed)
    assert got.tolist() == [by_hand.permuted(position, size, seed) for position in positions]


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 1023, 1025])
def test_every_position_occurs_once(size: int) -> None:
    for seed in (0, size, 2**64 - 1):
        assert np.array_equal(chosen(size, size, seed), np.arange(size))
        assert chosen(size, size // 3, seed).tolist() == by_hand.chosen(size, size // 3, seed)


def test_positions_are_correct_across_blocks() -> None:
    size, count = 200_000, 2**13 + 1000
    got = chosen(size, count, 3)
    assert np.all(np.diff(got) > 0)
    assert {int(permuted(np.array([p], dtype=np.uint64), size, 3)[0]) for p in (0, 2**13, count - 1)} <= set(
        got.tolist()
    )
    assert chosen(5, 0, 3).size == 0
    assert chosen(0, 0, 3).size == 0


@pytest.mark.parametrize(("size", "count"), [(50, 5), (64, 20), (100, 1)])
def test_positions_are_chosen_with_equal_frequency(size: int, count: int) -> None:
    draws = 50 * size // count
    hits = np.zeros(size)
    for seed in range(draws):
        hits[chosen(size, count, seed)] += 1
    expected = draws * count / size
    # Counts without replacement vary less than independent draws, so the bound is safe.
    assert ((hits - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, size - 1)
