"""Seeds on the wire: they reproduce the part exactly, are used where they are shortest, and are checked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from numpy.typing import NDArray

from hetfl import Level
from hetfl.compression import ErrorFeedback, TopK
from hetfl.entries import gather_flat
from hetfl.part import Part, only
from hetfl.parts import PartRule, RandomChannels, RandomMask, Rolling
from hetfl.recipe import MaskRecipe, Recipe, draw_mask, draw_positions
from hetfl.seeding import derive
from hetfl.updates import DenseUpdate
from hetfl.wire import MalformedPayload, Reason, decode_part, encode, encode_part
from tests.conftest import small_module
from tests.part_cases import drawn_parts

LEVELS = {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}
BLOCK = Part({"w": (slice(0, 40), slice(0, 50)), "b": (slice(0, 40),)})
WHOLE = Part({"w": (slice(0, 400), slice(0, 50)), "b": (slice(0, 400),)})
MASK = MaskRecipe(11, {"w": 0.25})


def masked(recipe: MaskRecipe = MASK) -> Part:
    return Part(BLOCK, recipe.mask({"w": 2000, "b": 40}), Recipe(mask=recipe))


def placed() -> Part:
    rows = draw_positions(5, 40, 400)
    return Part({"w": (rows, slice(0, 50)), "b": (rows,)}, recipe=Recipe({400: 5}))


def without(part: Part) -> Part:
    return Part(part, part.mask_D)


def words(seed: int, count: int) -> NDArray[np.int64]:
    """Return the 32-bit numbers of a Mersenne Twister that is seeded with the lowest 32 bits of a seed."""
    twister = np.random.RandomState(seed % 2**32)
    return twister.randint(0, 2**32, size=count, dtype=np.uint32).astype(np.int64)


@given(st.integers(0, 2**63 - 1), st.lists(st.tuples(st.integers(0, 70), st.floats(0, 1)), min_size=1))
def test_a_mask_is_drawn_as_documented(seed: int, tensors: list[tuple[int, float]]) -> None:
    sizes, densities = [size for size, _ in tensors], [density for _, density in tensors]
    numbers = iter((words(seed, sum(sizes)) % 2**24).tolist())
    bits = [
        np.float32(next(numbers) / 2**24) < np.float32(density) if density != 1.0 else True
        for n, density in tensors
        for _ in range(n)
    ]
    assert draw_mask(seed, densities, sizes).tolist() == bits


@given(st.integers(0, 2**63 - 1), st.integers(1, 200), st.data())
def test_positions_are_drawn_as_documented(seed: int, of: int, data: st.DataObject) -> None:
    held = data.draw(st.integers(0, of))
    order = list(range(of))
    for i, word in enumerate(words(seed, of).tolist()[:-1]):
        j = i + word % (of - i)
        order[i], order[j] = order[j], order[i]
    assert draw_positions(seed, held, of).tolist() == sorted(order[:held])


@settings(max_examples=150)
@given(drawn_parts())
def test_a_part_survives_encoding_with_any_recipe(drawn: tuple[Part, Part, Part]) -> None:
    part, block, whole = drawn
    coded = encode_part(part, block, whole)
    assert decode_part(coded, block, whole) == part
    assert len(coded) <= len(encode_part(without(part), block, whole))


@settings(max_examples=100)
@given(drawn_parts(), st.data())
def test_changed_bytes_are_refused_or_decode_to_a_part_of_equal_shapes(
    drawn: tuple[Part, Part, Part], data: st.DataObject
) -> None:
    part, block, whole = drawn
    coded = bytearray(encode_part(part, block, whole))
    for _ in range(data.draw(st.integers(1, 3))):
        if coded:
            coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    try:
        other = decode_part(bytes(coded), block, whole)
    except MalformedPayload:
        return
    assert other.layout.shapes == block.layout.shapes
    assert whole.covers(other)


def test_a_seeded_mask_takes_17_bytes_and_its_flags() -> None:
    coded = encode_part(masked(), BLOCK, WHOLE)
    assert len(coded) == 2 + 3 * 2 + 1 + 1 + 16  # selections, their numbers, the kind, the flags, the record
    assert len(encode_part(without(masked()), BLOCK, WHOLE)) > 200


def test_a_seeded_mask_has_a_density_for_every_tensor_that_is_not_whole() -> None:
    coded = encode_part(masked(MaskRecipe(11, {"w": 0.25, "b": 0.5})), BLOCK, WHOLE)
    assert len(coded) == 2 + 3 * 2 + 1 + 1 + 8 + 2 * 4 + 4
    assert coded[8] == 5
    assert decode_part(coded, BLOCK, WHOLE) == masked(MaskRecipe(11, {"w": 0.25, "b": 0.5}))
    whole = masked(MaskRecipe(11, {"w": 0.25, "b": 1.0}))
    assert encode_part(whole, BLOCK, WHOLE) == encode_part(masked(), BLOCK, WHOLE)


def test_seeded_positions_of_all_tensors_take_13_bytes() -> None:
    coded = encode_part(placed(), BLOCK, WHOLE)
    assert len(coded) == 2 + (12 + 13) + 3 * 2 + 1
    assert len(encode_part(without(placed()), BLOCK, WHOLE)) > len(coded) + 10


def test_the_seed_is_not_sent_where_the_part_is_shorter() -> None:
    rows = draw_positions(5, 3, 400)
    few = Part({"w": (rows, slice(0, 50))}, recipe=Recipe({400: 5}))
    block, whole = Part({"w": (slice(0, 3), slice(0, 50))}), Part({"w": WHOLE["w"]})
    assert encode_part(few, block, whole) == encode_part(without(few), block, whole)
    sparse = MaskRecipe(3, {"w": 0.004})
    mask_D = sparse.mask({"w": 150})
    assert mask_D.any()
    one = Part(block, mask_D, Recipe(mask=sparse))
    assert len(encode_part(one, block, whole)) <= len(encode_part(without(one), block, whole))


@pytest.mark.parametrize("density", [1e-50, 1 - 1e-12])
def test_a_density_that_float32_rounds_to_0_or_1_is_not_sent(density: float) -> None:
    recipe = MaskRecipe(11, {"w": density})
    part = masked(recipe)
    assert decode_part(encode_part(part, BLOCK, WHOLE), BLOCK, WHOLE) == part


@pytest.mark.parametrize(
    "recipe", [replace(MASK, seed=12), replace(MASK, densities={"w": 0.26}), replace(MASK, densities={})]
)
def test_a_recipe_of_another_part_is_not_sent(recipe: MaskRecipe) -> None:
    part = Part(BLOCK, masked().mask_D, Recipe(mask=recipe))
    assert encode_part(part, BLOCK, WHOLE) == encode_part(without(part), BLOCK, WHOLE)
    moved = Part(placed(), recipe=Recipe({400: 6}))
    assert encode_part(moved, BLOCK, WHOLE) == encode_part(without(moved), BLOCK, WHOLE)


def test_a_narrowed_part_has_no_recipe() -> None:
    part = masked()
    assert part.rows(frozenset({"b"}), torch.arange(40) % 2 == 0).recipe is None
    assert only(part, frozenset({"w"})).recipe is None
    assert part.dense.recipe is None


@pytest.mark.parametrize(
    ("seed", "density", "reason", "message"),
    [
        (2**63, 0.25, Reason.VALUES, "Expected a seed below 9223372036854775808 but got 9223372036854775808"),
        (11, 0.0, Reason.VALUES, "Expected a density between 0 and 1 but got 0"),
        (11, 1.0, Reason.VALUES, "Expected a density between 0 and 1 but got 1"),
        (11, -0.25, Reason.VALUES, "but got -0.25"),
        (11, float("nan"), Reason.VALUES, "but got nan"),
        (11, float("inf"), Reason.VALUES, "but got inf"),
        (12, 0.25, Reason.CHECKSUM, "Expected a seed that draws what the sender drew"),
        (11, 0.26, Reason.CHECKSUM, "Expected a seed that draws what the sender drew"),
    ],
)
def test_an_impossible_mask_record_is_refused(seed: int, density: float, reason: Reason, message: str) -> None:
    coded = encode_part(masked(), BLOCK, WHOLE)
    record = struct.pack("<Qf", seed, density) + coded[-4:]
    with pytest.raises(MalformedPayload, match=message) as refusal:
        decode_part(coded[:-16] + record, BLOCK, WHOLE)
    assert refusal.value.reason == reason


def test_impossible_seeded_positions_are_refused() -> None:
    coded = encode_part(placed(), BLOCK, WHOLE)
    start = coded.index(b"\xfe")
    for seed, message in ((2**63, "Expected a seed below"), (6, "Expected a seed that draws what the sender drew")):
        changed = coded[: start + 1] + struct.pack("<Q", seed) + coded[start + 9 :]
        with pytest.raises(MalformedPayload, match=message):
            decode_part(changed, BLOCK, WHOLE)
    short = coded[: start - 4] + struct.pack("<I", 12) + coded[start : start + 12] + coded[start + 13 :]
    with pytest.raises(MalformedPayload, match="Expected a seed in 13 bytes but got 12"):
        decode_part(short, BLOCK, WHOLE)
    assert decode_part(coded, BLOCK, WHOLE) == placed()


def test_an_unknown_kind_of_mask_is_refused() -> None:
    coded = bytearray(encode_part(masked(), BLOCK, WHOLE))
    coded[8] = 6
    with pytest.raises(MalformedPayload, match="Expected a kind of mask up to 5 but got 6"):
        decode_part(bytes(coded), BLOCK, WHOLE)


@pytest.mark.parametrize("rule", [RandomMask(), RandomChannels()], ids=["mask", "channels"])
def test_random_part_rules_give_the_recipes_of_their_parts(rule: PartRule) -> None:
    levels = LEVELS if rule.masks else {"a": Level("a"), "b": Level("b", 0.5)}
    small_module(parts=rule, levels=levels, seed=3)
    block, whole = rule.levels.indices["b"], rule.levels.indices["a"]
    part = rule.part("b", 4, 7)
    assert part.recipe is not None
    assert decode_part(encode_part(part, block, whole), block, whole) == part
    if rule.masks:
        assert part.recipe.mask is not None
        assert part.recipe.mask.seed == derive(3, "mask", 4, 7)
        assert part.recipe.mask.mask(dict(zip(part, part.layout.sizes, strict=True))).equal(part.mask_D)  # type: ignore[arg-type]
        assert len(encode_part(part, block, whole)) < len(encode_part(without(part), block, whole))
    else:
        assert part.recipe.channels == {size: derive(3, "channels", 4, 7, size) for size in part.recipe.channels}
        assert part.recipe.channels


@pytest.mark.parametrize("rule", [Rolling(), RandomChannels(), RandomMask()], ids=["window", "channels", "mask"])
def test_the_ledger_counts_the_bytes_of_messages_in_both_directions(
    fit: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, rule: PartRule
) -> None:
    levels = LEVELS if rule.masks else {"a": Level("a"), "b": Level("b", 0.5)}
    module = small_module(parts=rule, levels=levels, uplink=ErrorFeedback(TopK(0.2)))
    prepare, sent = module.uplink.prepare, list[int]()

    def spy(*given: object, **named: object) -> object:
        message = prepare(*given, **named)  # type: ignore[arg-type]
        sent.append(len(message.payload))
        return message

    monkeypatch.setattr(module.uplink, "prepare", spy)
    trainer = fit(module, rounds=3, limit_val_batches=0)
    table = pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")
    blocks, known, seen = rule.levels.indices, dict[int, Part](), 0
    for round in range(3):
        down, tasks = 0, module.round.tasks(round, 0.0)
        for task in tasks:
            values = gather_flat(module.models.tensors[0], task.part)
            down += len(encode(DenseUpdate(values), round=round, client=0))
            if task.part not in (blocks[task.level], known.get(task.client)):
                down += len(encode_part(task.part, blocks[task.level], blocks["a"]))
                known[task.client], seen = task.part, seen + 1
        assert table["comm/down_bytes"][round] == down
        assert table["comm/up_bytes"][round] == sum(sent[: len(tasks)])
        del sent[: len(tasks)]
    assert seen > 2
