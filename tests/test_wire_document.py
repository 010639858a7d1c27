"""``docs/wire.md``: its examples and tables agree with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from index_bits import DENSITIES, LENGTHS, ratio

from hetfl.layout import Layout
from hetfl.part import Part
from hetfl.permutation import permuted
from hetfl.recipe import MaskRecipe, Recipe
from hetfl.rotation import Rotation
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate
from hetfl.wire import (
    Expected,
    Reason,
    decode,
    decode_part,
    decode_submodel,
    encode,
    encode_part,
    encode_submodel,
    rice,
)
from hetfl.wire.header import HEADER_SIZE, Header, Kind
from hetfl.wire.support import most_support_bytes
from tests.wire_by_hand import message

TEXT = (Path(__file__).parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"### (.+)\n\n```json\n(.+)\n(.+)\n```\n\n```hex\n([^`]+)```", TEXT)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table with this heading cell, without its heading row."""
    table = TEXT.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def bytes_in(block: str) -> bytes:
    return bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))


def expected_of(known: dict[str, Any]) -> Expected:
    layout = None if known["layout"] is None else Layout({n: tuple(shape) for n, shape in known["layout"].items()})
    dtype = getattr(torch, known["dtype"])
    return Expected(3, 17, known["size"], known["exact_size"], dtype, exact_dtype=torch.float32, layout=layout)


def test_there_is_an_example_of_every_kind_and_dtype() -> None:
    payloads = [bytes_in(block) for *_, block in EXAMPLES]
    assert {payload[5] for payload in payloads} == {0, 1, 2, 3}
    assert {payload[6] for payload in payloads} == {0, 1, 2, 3}
    assert {payload[HEADER_SIZE] == 255 for payload in payloads if payload[5] == 1} == {True, False}


@pytest.mark.parametrize(("title", "known", "read", "block"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_every_example_decodes_to_the_documented_update(title: str, known: str, read: str, block: str) -> None:
    payload, documented = bytes_in(block), json.loads(read)["update"]
    update = decode(payload, expected_of(json.loads(known)["expected"]))
    half = payload[6] == 0
    assert encode(update, round=3, client=17, half_precision=half) == payload
    assert message(update, 3, 17, half) == payload
    got: dict[str, Any] = {"values": update.values.tolist(), "exact": update.exact.tolist()}
    if isinstance(update, SparseUpdate):
        got["indices"] = update.indices.tolist()
        got["runs"] = [[got["indices"][0], len(got["indices"])]] if got["indices"] else []
    if isinstance(update, SeededUpdate):
        got |= {"seed": update.seed, "counts": list(update.counts)}
    if isinstance(update, LowRankUpdate):
        got["ranks"] = list(update.ranks)
    if (codes := update.codes) is not None:
        got |= {"bits": codes.bits, "bucket": codes.bucket, "codes": codes.codes.tolist()}
        got |= {"scales": codes.scales.tolist(), "zeros": codes.zeros.tolist()}
    for name, want in documented.items():
        assert (got[name[6:]][: len(want)] if name.startswith("first_") else got[name]) == want, name


def test_the_example_of_a_part_decodes_as_documented() -> None:
    block, _ = re.findall(r"```part\n([^`]+)```", TEXT)
    net, rows = Part({"w": (slice(0, 2), slice(0, 3)), "b": (slice(0, 2),)}), torch.tensor([0, 3])
    whole = Part({"w": (slice(0, 4), slice(0, 4)), "b": (slice(0, 4),)})
    part = Part({"w": (rows, slice(1, 4)), "b": (rows,)}, torch.tensor([1, 0, 0, 1, 1, 0, 1, 1]).bool())
    assert encode_part(part, net, whole) == bytes_in(block)
    assert decode_part(bytes_in(block), net, whole) == part


def test_the_example_of_a_seeded_part_decodes_as_documented() -> None:
    _, block = re.findall(r"```part\n([^`]+)```", TEXT)
    net = Part({"w": (slice(0, 64), slice(0, 4)), "b": (slice(0, 64),)})
    whole = Part({"w": (slice(0, 128), slice(0, 4)), "b": (slice(0, 128),)})
    numbers, order = twister(5, 127), list(range(128))
    for i, number in enumerate(numbers):
        j = i + number % (128 - i)
        order[i], order[j] = order[j], order[i]
    rows = torch.tensor(sorted(order[:64]))
    held = torch.tensor([number % 2**24 / 2**24 < 0.25 for number in twister(9, 256)])
    recipe = Recipe({128: 5}, MaskRecipe(9, {"w": 0.25}))
    part = Part({"w": (rows, slice(0, 4)), "b": (rows,)}, torch.cat([held, torch.ones(64, dtype=torch.bool)]), recipe)
    assert encode_part(part, net, whole) == bytes_in(block)
    assert decode_part(bytes_in(block), net, whole) == part


def test_the_example_of_a_submodel() -> None:
    (block,) = re.findall(r"```submodel\n([^`]+)```", TEXT)
    layout = Layout({"w": (3, 2)})
    submodel = decode_submodel(bytes_in(block), Expected(3, 1, 6, 2, layout=layout))
    root = 2**0.5
    assert submodel.values_D.tolist() == pytest.approx([1, -2.5, -1.5, 0, -2 / root, 3 / root])
    assert submodel.exact.tolist() == [0.25, -1]
    update = decode(bytes_in(block)[12:], Expected(3, 1, 6, 2, layout=layout))
    assert isinstance(update, DenseUpdate)
    assert encode_submodel(update, Rotation(2, 5), round=3, model=1) == bytes_in(block)


def twister(seed: int, count: int) -> list[int]:
    return np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32).tolist()  # type: ignore[no-any-return]


def test_the_examples_of_rice_streams_are_correct() -> None:
    for written, stream in rows("numbers"):
        numbers = [] if written == "(none)" else [int(number) for number in written.split(",")]
        data = np.frombuffer(bytes.fromhex(stream.strip("`")), dtype=np.uint8)
        assert np.array_equal(rice.encode(np.array(numbers, dtype=np.int64)), data)
        assert rice.decode(data, len(numbers), sum(numbers)).tolist() == numbers


def test_the_examples_of_permutations_are_correct() -> None:
    for size, seed, written in rows("n"):
        positions = [int(position) for position in written.split(",")]
        assert permuted(np.arange(len(positions), dtype=np.uint64), int(size), int(seed)).tolist() == positions


def test_the_table_of_index_bits_is_correct() -> None:
    table = rows("density")
    assert [row[0] for row in table] == [f"{100 * density:g} %" for density in DENSITIES]
    ratios = np.array([[float(cell.split("=")[1]) for cell in row[1:]] for row in table])
    assert ratios.shape == (len(DENSITIES), len(LENGTHS))
    assert ratios.max() <= 1.15
    assert ratios[:, 0] == pytest.approx([ratio(LENGTHS[0], density, draws=20) for density in DENSITIES], abs=6e-4)


def test_every_field_and_reason_is_described() -> None:
    offset = 0
    for start, length, *_ in rows("offset")[:11]:
        assert int(start) == offset
        offset += int(length)
    assert rows("offset")[-1][2] == "checksum"
    assert offset + 4 == HEADER_SIZE
    assert {name.strip() for row in rows("reason") for name in row[0].split(",")} == set(Reason)


@pytest.mark.parametrize(
    ("kind", "tensors", "most"),
    [
        (Kind.DENSE, 1, 0),
        (Kind.SPARSE, 1, 32 + 2 + 4 * 3),  # D = 11 entries, k = 3 sent entries
        (Kind.SEEDED, 2, 8 + 8 * 2),
        (Kind.SEEDED, 0, 8 + 8),
        (Kind.LOW_RANK, 2, 2 * 2),
        (Kind.LOW_RANK, 0, 2),
    ],
)
def test_the_largest_support_size_is_the_documented_one(kind: Kind, tensors: int, most: int) -> None:
    layout = Layout({str(number): (1,) for number in range(tensors)}) if tensors else None
    header = Header(b"HTFL", 2, kind, 1, 1, 3, 17, size=11, num_sent=3, num_exact=0, support_bytes=0)
    assert most_support_bytes(header, 11, layout) == most


def test_a_rank_above_two_bytes_is_not_encoded() -> None:
    layout = Layout({"w": (2**16, 2**16)})
    with pytest.raises(ValueError, match=r"Expected ranks of client 17 .* got \(65536,\)"):
        encode(LowRankUpdate(torch.zeros(1), layout, (2**16,)), round=3, client=17)
