"""Hostile bytes in the place of a coded sub-model: refused with MalformedPayload, or what comes out is sound."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import torch

from hetfl.compression import DynamicRange, StochasticQuantizer
from hetfl.downlink import Downlink
from hetfl.layout import Layout
from hetfl.rotation import Rotation
from hetfl.updates import DenseUpdate, SparseUpdate
from hetfl.wire import Expected, MalformedPayload, Reason, decode_submodel, encode, encode_submodel
from tests.wire_by_hand import HEADER, mended

CASES = int(os.environ.get("HETFL_FUZZ", "0")) // 5 or 4_000
HEAD = 12
TEMPTING = [0, 1, 2, 30, 31, 127, 128, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def honest(rows: int) -> list[tuple[bytes, Expected]]:
    """Sub-models in floats and in codes, rotated and not, with an exact block and without."""
    generator = torch.Generator().manual_seed(rows)
    layout = Layout({"w": (rows, 2, 3), "none": (0,), "v": (rows, 1)})
    values_D = torch.randn(layout.size, generator=generator)
    downlinks = [
        Downlink(DynamicRange(4, 8, stochastic=True)),
        Downlink(DynamicRange(8, None, stochastic=True), rotate=True, block=16),
        Downlink(StochasticQuantizer(3, 2**20), rotate=True, block=2),
    ]
    found = []
    for number, downlink in enumerate(downlinks):
        exact = torch.randn(number, generator=generator)
        data = downlink.encode(values_D, layout, exact, round=7, model=2, seed=number)
        found.append((data, Expected(7, 2, layout.size, number, layout=layout)))
    floats = encode_submodel(DenseUpdate(values_D), Rotation(30, 2**64 - 1), round=7, model=2)
    return [*found, (floats, Expected(7, 2, layout.size, layout=layout))]


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bits, numbers and lengths changed; in most cases the checksum is mended, so that later checks are reached."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(chance.choice((HEAD, HEAD + HEADER + 16, max(1, len(out)))))
        match chance.randrange(5):
            case 0:
                out[min(place, len(out) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                length = chance.choice((1, 2, 4, 8))
                number = chance.choice(TEMPTING) % 256**length
                out[place : place + length] = number.to_bytes(length, "little")[: max(0, len(out) - place)]
            case 2:
                del out[max(1, place) :]
            case 3:
                out += chance.randbytes(chance.choice((1, 4, 64)))
            case _:
                out[place:] = other[place:]
    whole = bytes(out)
    if len(whole) >= HEAD + HEADER and chance.random() < 0.7:
        whole = whole[:HEAD] + mended(whole[HEAD:])
    return whole


def test_mutated_submodels_are_refused_or_sound() -> None:
    chance = random.Random(20_261_129)
    seeds, outcomes = honest(4) + honest(40), Counter[str]()
    for case in range(CASES):
        (data, expected), other = chance.choice(seeds), chance.choice(seeds)[0]
        hostile = mutated(data, other, chance)
        try:
            submodel = decode_submodel(hostile, expected)
        except MalformedPayload as refusal:
            outcomes[refusal.reason] += 1
            continue
        except Exception as error:
            pytest.fail(f"case {case}: {type(error).__name__}: {error}\n{hostile.hex()}\n{expected}")
        assert submodel.values_D.shape == (expected.size,)
        assert submodel.exact.shape == (expected.exact_size,)
        assert all(bool(torch.isfinite(numbers).all()) for numbers in (submodel.values_D, submodel.exact))
        outcomes["accepted"] += 1
    # Dense messages have no indices: a message of another kind with wrong ones is rare, and need not occur.
    common = {*Reason, "accepted"} - {Reason.INDICES}
    assert min(outcomes[each] for each in common) > CASES // 1000


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x1f" + bytes(11), Reason.FORMAT),  # a block of 2^31 entries
        (b"\x02\x00\x01" + bytes(9), Reason.FORMAT),
        (bytes(11) + b"\x01", Reason.FORMAT),  # a seed, and no rotation
        (b"\x02" + bytes(11), Reason.FORMAT),  # of a message that is not dense
        (b"\x02" + bytes(3), Reason.LENGTH),
    ],
)
def test_what_is_no_submodel_is_refused(head: bytes, reason: Reason) -> None:
    body = encode(SparseUpdate(torch.ones(1), torch.tensor([2]), 8), round=7, client=2)
    with pytest.raises(MalformedPayload) as refusal:
        decode_submodel(head + body if len(head) == HEAD else head, Expected(7, 2, 8))
    assert refusal.value.reason == reason


def test_a_rotation_that_overflows_is_refused() -> None:
    update = DenseUpdate(torch.full((64,), 3e38))
    data = encode_submodel(update, Rotation(6, 1), round=7, model=2)
    with pytest.raises(MalformedPayload, match="rotation that overflows"):
        decode_submodel(data, Expected(7, 2, 64))
