"""Packed values and tensors are unpacked unchanged; other bytes are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.packing import pack, unpack

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)


@settings(max_examples=100)
@given(st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)))
def test_packed_values_are_unpacked_unchanged(tree: object) -> None:
    assert unpack(pack(tree)) == tree


def test_packed_tensors_are_unpacked_bit_for_bit() -> None:
    tree = {
        "a": torch.tensor([1.5, -0.0, 1e-45, math.nan, math.inf]),
        "loss": torch.tensor(math.nan, dtype=torch.float64),
        "tensor": {"items": torch.arange(6).view(2, 3).T},
        "empty": torch.empty(0),
    }

    def tensors(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [each for item in value.values() for each in tensors(item)] if isinstance(value, dict) else []

    unpacked = unpack(pack(tree))
    assert list(unpacked) == list(tree)
    for got, expected in zip(tensors(unpacked), tensors(tree), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64, pack({"a": torch.ones(3)})[:-1]])
def test_bytes_that_are_not_packed_values_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="packed values"):
        unpack(data)
