"""Rotations: an orthonormal matrix, built here by its definition, and its inverse; segments that cover every tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetfl.rotation import Rotation, hadamard, segments

MASK = 2**64 - 1


def sign(seed: int, position: int) -> int:
    """The sign of an entry, by arithmetic on Python's integers."""
    word = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return -1 if (word ^ (word >> 31)) >> 63 else 1


def matrix(seed: int, sizes: list[int], block: int) -> NDArray[np.float64]:
    """R, a block on the diagonal for every segment, from Kronecker products."""
    total, position = sum(sizes), 0
    found = np.zeros((total, total))
    for size in sizes:
        left = size
        while left:
            length = block
            while length > left:
                length //= 2
            hadamard_n = np.ones((1, 1))
            while len(hadamard_n) < length:
                hadamard_n = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), hadamard_n)
            end = position + length
            found[position:end, position:end] = hadamard_n / np.sqrt(length)
            position, left = end, left - length
    signs = np.array([sign(seed, i) for i in range(total)], dtype=np.float64)
    return np.asarray(found * signs, dtype=np.float64)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, MASK))
def test_a_rotation_is_the_orthonormal_matrix_of_its_definition(sizes: list[int], log: int, seed: int) -> None:
    rotation, total = Rotation(log, seed), sum(sizes)
    expected = matrix(seed, sizes, 2**log)
    assert np.allclose(expected @ expected.T, np.eye(total), rtol=0, atol=1e-13)
    vector = torch.randn(total, dtype=torch.float64, generator=torch.Generator().manual_seed(seed % 1000))
    turned = rotation.turned(vector, sizes)
    assert np.allclose(turned.numpy(), expected @ vector.numpy(), rtol=0, atol=1e-13)
    assert torch.allclose(rotation.back(turned, sizes), vector, rtol=0, atol=1e-13)
    assert float(turned.norm()) == pytest.approx(float(vector.norm()), rel=1e-13)


@given(st.lists(st.integers(0, 300), max_size=6), st.integers(1, 7))
def test_segments_cover_every_tensor_and_cross_none(sizes: list[int], log: int) -> None:
    ends = np.cumsum([0, *sizes])
    seen = np.zeros(sum(sizes), dtype=int)
    for size, starts in segments(sizes, 2**log).items():
        assert size & (size - 1) == 0
        assert size <= 2**log
        for start in starts:
            seen[start : start + size] += 1
            assert np.searchsorted(ends, start, side="right") == np.searchsorted(ends, start + size, side="left")
    assert (seen == 1).all()


def test_a_large_entry_is_spread() -> None:
    spike = torch.zeros(64, dtype=torch.float64)
    spike[17] = 8.0
    assert Rotation(6, 3).turned(spike, [64]).abs().tolist() == [1.0] * 64


def test_two_transforms_are_the_identity() -> None:
    rows = torch.randn(3, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hadamard(hadamard(rows)), rows, rtol=0, atol=1e-13)


@pytest.mark.parametrize("log", [0, 31])
def test_blocks_out_of_range_are_refused(log: int) -> None:
    with pytest.raises(ValueError, match=f"got 2\\^{log}"):
        Rotation(log, 0)
