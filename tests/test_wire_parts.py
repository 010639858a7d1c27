"""Encoded parts: every part survives encoding, sizes are near the entropy, and other bytes are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetfl.part import Part
from hetfl.wire import MalformedPayload, decode_part, encode_part
from tests.part_cases import WHOLE, blocks, parts_like


@settings(max_examples=200)
@given(st.data())
def test_a_part_survives_encoding_and_decoding(data: st.DataObject) -> None:
    block = data.draw(blocks())
    part = data.draw(parts_like(block))
    coded = encode_part(part, block, WHOLE)
    assert decode_part(coded, block, WHOLE) == part
    assert (coded == b"") == (part == block)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_an_encoded_random_mask_is_near_its_entropy(density: float) -> None:
    """At most 1.1 times the entropy of the mask, and at most one bit per entry."""
    size = 100_000
    block = Part({"w": (slice(0, 100), slice(0, size // 100))})
    mask_D = torch.rand(size, generator=torch.Generator().manual_seed(1)) < density
    held = mask_D.double().mean().item()
    entropy = -size * (held * math.log2(held) + (1 - held) * math.log2(1 - held)) / 8
    coded = len(encode_part(Part(block, mask_D), block, block))
    assert coded <= min(1.1 * entropy, size / 8 + 40)
    assert coded >= 0.99 * entropy


@settings(max_examples=300)
@given(st.data())
def test_changed_bytes_are_refused_or_decode_to_a_valid_part(data: st.DataObject) -> None:
    block = data.draw(blocks())
    coded = bytearray(encode_part(data.draw(parts_like(block)), block, WHOLE))
    for _ in range(data.draw(st.integers(1, 3))):
        if coded:
            coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(coded)[: data.draw(st.integers(0, len(coded)))] + data.draw(st.binary(max_size=3))
    try:
        part = decode_part(changed, block, WHOLE)
    except MalformedPayload:
        return
    assert part.layout.shapes == block.layout.shapes
    for name, entry in part.items():
        for dimension, of in zip(entry, WHOLE[name], strict=True):
            assert isinstance(of, slice)
            places = np.arange(of.stop)[dimension] if isinstance(dimension, slice) else dimension.numpy()
            assert (np.diff(places) > 0).all()
            assert 0 <= places.min() <= places.max() < of.stop


def test_extra_bytes_and_masks_of_wrong_length_are_refused() -> None:
    block = Part({"w": (slice(0, 4), slice(0, 4))})
    coded = encode_part(Part(block, torch.arange(16) % 2 == 0), block, block)
    with pytest.raises(MalformedPayload, match="Expected the end of a part but got 1 bytes more"):
        decode_part(coded + b"\0", block, block)
    head = coded[:-18]  # without the number of bits, the block and its two bytes
    for count, length in ((15, 2), (16, 1), (16, 3)):
        mask = count.to_bytes(8, "little") + length.to_bytes(8, "little") + b"\xaa" * length
        with pytest.raises(MalformedPayload, match=f"Expected a mask of 16 entries but got {count} in {length} bytes"):
            decode_part(head + mask, block, block)
