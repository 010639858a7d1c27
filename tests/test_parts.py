"""Parts and part rules: vectors, masks, every executor, ranks, nodes and resuming."""

from __future__ import annotations

import pickle  # noqa: TID251 -- parts are sent to worker processes
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer

from hetfl import FedAvg, FederatedModule, HeteroFL, Level
from hetfl.accounting import Downloads
from hetfl.cli import FederatedTrainer
from hetfl.compression import ErrorFeedback, LowRank, TopK
from hetfl.entries import Entries, add_holders, blocks_of, gather_flat
from hetfl.errors import ConfigurationError
from hetfl.local import Executor, FedDyn, ImportanceGradient, LocalTraining, Penalty, Sequential, Stacked, Workers
from hetfl.part import Part, only
from hetfl.parts import PartRule, Prefix, RandomChannels, RandomMask, Rolling, ScoredChannels
from hetfl.parts.rolling import window
from hetfl.piece import Facts
from hetfl.selection import Uniform
from hetfl.testing import check_part_rule
from hetfl.types import Task
from hetfl.wire import dense_size, encode_part
from tests.conftest import small_data, small_levels, small_module
from tests.local_cases import Problem, bench_of, results, sgd
from tests.part_cases import SHAPES, WHOLE, blocks, held_by, parts_like

Fit = Callable[..., Trainer]
SPARSE = {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}


@settings(max_examples=150)
@given(st.data())
def test_take_and_put_of_a_part_equal_numpy(data: st.DataObject) -> None:
    part = data.draw(parts_like(data.draw(blocks())))
    tensors = {name: torch.rand(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    held = held_by(part)
    vector = gather_flat(tensors, part)
    assert vector.shape == (part.size,)
    assert torch.equal(part.packed(part.spread(vector)), vector)
    assert sorted(vector.tolist()) == sorted(x for name in part for x in tensors[name].numpy()[held[name]].tolist())
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    entries = Entries(part, WHOLE)
    assert torch.equal(entries.take(flat), vector)
    entries.put(flat, -vector)
    for name, written in WHOLE.layout.views(flat).items():
        expected = np.where(held[name], -tensors[name].numpy(), tensors[name].numpy())
        assert np.array_equal(written.numpy(), expected)
    counts = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    add_holders(counts, part, 2.0)
    assert all(np.array_equal(counts[name].numpy(), 2.0 * held[name]) for name in part)
    for name, block in blocks_of(vector, part).items():
        corner = tuple(slice(size) for size in block.shape)
        assert np.array_equal(~np.isnan(block.numpy()), held[name][corner])
        assert not held[name].sum() - held[name][corner].sum()
        assert np.array_equal(block.numpy()[held[name][corner]], tensors[name].numpy()[held[name]])


@settings(max_examples=150)
@given(st.data())
def test_a_part_covers_another_part_if_it_holds_all_of_its_entries(data: st.DataObject) -> None:
    one, two = (data.draw(parts_like(data.draw(blocks()))) for _ in range(2))
    names = data.draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1))
    two = only(two, frozenset(names))

    def within(outer: Part, inner: Part) -> bool:
        mine, inner_masks = held_by(outer), held_by(inner)
        return all(bool((mine[name] | ~held).all()) for name, held in inner_masks.items())

    # A client needs every position of its net, held or not, and every held entry.
    assert one.covers(two) == (within(one.dense, two.dense) and within(one, two))
    fewer = one.spread(torch.rand(one.size)) > 0.5
    assert one.covers(Part(one, fewer))
    if one.mask_D is not None:
        assert not one.covers(one.dense)
    assert WHOLE.covers(one)


@given(st.data())
def test_parts_with_equal_keys_hold_the_same_entries(data: st.DataObject) -> None:
    block = data.draw(blocks())
    one, two = data.draw(parts_like(block)), data.draw(parts_like(block))
    masks = [part.spread(torch.ones(part.size)) for part in (one, two)]
    same = torch.equal(*masks) and all(
        np.array_equal(np.arange(9)[a] if isinstance(a, slice) else a, np.arange(9)[b] if isinstance(b, slice) else b)
        for name in one
        for a, b in zip(one[name], two[name], strict=True)
    )
    if one.key == two.key:
        assert same
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_a_part_in_a_message_is_no_open_file() -> None:
    """A tensor in a message is one, as long as it lives: a round of many clients would have too many."""
    part = Part({"w": (torch.tensor([0, 2]), slice(0, 3))}, torch.tensor([True] * 5 + [False]))
    before = len(list(Path("/proc/self/fd").iterdir()))
    message = ForkingPickler.dumps(part)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    read = pickle.loads(message)  # noqa: S301
    assert read == part
    assert read.mask_D.tolist() == [True] * 5 + [False]


def test_a_rolling_window_wraps_around() -> None:
    def positions(start: int) -> list[int]:
        dimension = window(start, 5, 3)
        return list(range(5))[dimension] if isinstance(dimension, slice) else dimension.tolist()

    assert [positions(t) for t in range(6)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 3, 4], [0, 1, 4], [0, 1, 2]]


def set_up(rule: PartRule, levels: dict[str, Level] | None = None) -> PartRule:
    small_module(parts=rule, levels=levels or small_levels(1.0, 0.5, 0.25))
    return rule


@pytest.mark.parametrize("rule", [Prefix, Rolling, RandomChannels, RandomMask, ScoredChannels])
def test_every_part_rule_fulfils_the_contract(rule: type[PartRule]) -> None:
    check_part_rule(rule)


def test_a_rolling_window_holds_every_channel_equally_often() -> None:
    parts = set_up(Rolling())
    counts = {name: torch.zeros(shape) for name, shape in parts.levels.indices["a"].layout.shapes.items()}
    for round in range(16):
        assert parts.part("b", round, 0).covers(parts.part("c", round, 1))
        add_holders(counts, parts.part("b", round, 0))
    assert set(counts["blocks.0.conv.bias"].tolist()) == {8.0}
    assert set(counts["blocks.1.conv.bias"].tolist()) == {8.0}


def test_a_random_mask_has_the_density_of_its_level_and_holds_biases_whole() -> None:
    parts = set_up(RandomMask(), {"a": Level("a"), "b": Level("b", density=0.3)})
    one, two = parts.part("b", 0, 1), parts.part("b", 0, 2)
    assert one.mask_D is not None
    assert one != two
    masks = one.layout.views(one.mask_D)
    assert all(bool(mask.all()) for mask in masks.values() if mask.dim() < 2)
    weights = torch.cat([mask.flatten() for mask in masks.values() if mask.dim() > 1])
    assert weights.double().mean().item() == pytest.approx(0.3, abs=0.05)


class Drawn(PartRule):
    """Random channels, and a random share of all entries, for every client."""

    masks = True

    def part(self, level: str, round: int, client: int) -> Part:
        part = RandomChannels.part(self, level, round, client)  # type: ignore[arg-type]
        if self.levels[level].density == 1:
            return part
        random = torch.Generator().manual_seed(client)
        return Part(part, torch.rand(part.layout.size, generator=random) < self.levels[level].density)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("executor", "penalty"),
    [
        (Stacked(3), FedDyn(0.4)),
        (Stacked(3), ImportanceGradient()),
        (Workers(2), FedDyn(0.4)),
        (Workers(2, Stacked(2)), FedDyn(0.4)),
    ],
)
def test_executors_agree_if_clients_of_one_level_have_different_parts(executor: Executor, penalty: Penalty) -> None:
    problem = Problem(
        LocalTraining(epochs=2, gradient_clip=0.6, optimizer=sgd(), penalty=penalty),
        levels={"a": Level("a"), "b": Level("b", 0.5, density=0.4)},
    )
    rule = Drawn()
    rule.meet(problem.levels, seed=3)
    tasks = [replace(Task(k, level, 3, 3, 0.05), part=rule.part(level, 3, k)) for k in range(3) for level in "ba"]
    tasks.append(replace(Task(1, "b", 3, 3, 0.05)))
    expected = results(Sequential(), bench_of(problem), tasks)
    try:
        actual = results(executor, bench_of(problem), tasks)
    finally:
        executor.close()
    for task, (delta, *_), (other, *_) in zip(tasks, expected, actual, strict=True):
        assert torch.allclose(other, delta, rtol=0, atol=1e-12)
        if task.part.mask_D is not None:
            assert not delta[~task.part.mask_D].any()
            assert delta[task.part.mask_D].abs().max() > 1e-4


@pytest.mark.parametrize("rule", [Rolling, RandomMask])
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path, rule: type[PartRule]) -> None:
    def module() -> FederatedModule:
        levels = SPARSE if rule.masks else small_levels(1.0, 0.5, 0.25)
        return small_module(levels=levels, parts=rule(), uplink=ErrorFeedback(TopK(0.2)))

    whole, first, second = module(), module(), module()
    one = fit(whole, rounds=4, name="whole")
    begun = fit(first, rounds=2, name="begun")
    begun.save_checkpoint(tmp_path / "half.ckpt")
    two = fit(second, rounds=4, name="resumed", ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    rows = [Path(str(trainer.log_dir), "metrics.csv").read_text().splitlines() for trainer in (one, two)]
    assert rows[0][3:] == rows[1][1:]
    assert len(rows[1]) == 3


def test_sparse_flops_count_held_entries_only(fit: Fit) -> None:
    """A forward pass of ConvNet takes 2 operations for each kernel entry at each of its output positions."""
    module = small_module(levels=SPARSE, parts=RandomMask(), selection=Uniform(12))
    data = small_data()
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    positions = {"blocks.0.conv.weight": 64, "blocks.1.conv.weight": 16, "classifier.weight": 1}
    sparse = 0.0
    for client, level in enumerate(module.assignment.levels(0)):
        part = module.parts.part(level, 0, client)
        held, dense = (
            sum(count * only(each, frozenset({name})).size for name, count in positions.items())
            for each in (part, part.dense)
        )
        sparse += module.levels.flops[level][1] * data.sizes[client] * held / dense
    row = pd.read_csv(Path(str(trainer.log_dir), "metrics.csv")).iloc[0]
    assert row["compute/sparse_flops_total"] == pytest.approx(sparse, rel=1e-12)
    assert row["compute/sparse_flops_total"] < row["compute/flops_total"]


def test_a_density_without_masks_and_masks_without_shapes_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="Expected density 1 at level b, as parts of Prefix have no mask"):
        small_module(levels=SPARSE)
    with pytest.raises(ConfigurationError, match="looks at rows or filters but got LowRank with masks"):
        fit(small_module(levels=SPARSE, parts=RandomMask(), uplink=ErrorFeedback(LowRank(2))))
    with pytest.raises(ConfigurationError, match="Expected the first level to be the global model, of density 1"):
        small_module(levels={"a": Level("a", density=0.5)}, parts=RandomMask())


def test_a_rule_with_parts_of_wrong_shape_is_refused_and_the_tensor_is_named(fit: Fit) -> None:
    class Wrong(Prefix):
        def part(self, level: str, round: int, client: int) -> Part:
            return super().part("a", round, client)

    with pytest.raises(ConfigurationError, match=r"shapes of the net at level . from Wrong but got others at 'blocks"):
        fit(small_module(parts=Wrong(), check_nesting=False))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (True, "Expected masks of trained parameters alone from Everywhere but got one of other tensors at level b"),
        (False, "Expected masks = True in Everywhere, whose parts have masks, but got False, and a mask at level b"),
    ],
)
def test_a_mask_of_a_frozen_parameter_or_of_a_rule_that_declares_none_is_refused(masks: bool, message: str) -> None:
    class Everywhere(Prefix):
        def part(self, level: str, round: int, client: int) -> Part:
            block = super().part(level, round, client)
            return Part(block, torch.arange(block.layout.size) < block.layout.size - 1) if level == "b" else block

    rule = type("Everywhere", (Everywhere,), {"masks": masks})()
    module = small_module(parts=rule, check_nesting=False)
    module.net.get_parameter("classifier.bias").requires_grad_(False)
    with pytest.raises(ConfigurationError, match=message):
        FederatedTrainer(logger=False, enable_progress_bar=False).introduce(module, small_data())


def test_a_first_edition_subclass_is_refused_with_the_replacement() -> None:
    for name, successor in (("index", "a part rule"), ("upload_index", "a method sent")):
        with pytest.raises(TypeError, match=f"Expected {successor}.* in place of {name}"):
            type("Old", (HeteroFL,), {name: lambda self, *given: {}})


def test_frozen_parameters_are_sent_once_to_each_client(fit: Fit) -> None:
    module: Any = small_module(FedAvg, levels=small_levels(1.0), selection=Uniform(12))
    module.net.classifier.weight.requires_grad_(False)
    fit(module, rounds=3, limit_val_batches=0)
    whole, frozen = module.levels.sizes["a"], module.net.classifier.weight.numel()
    assert module.ledger.total.down_bytes == 12 * (dense_size(whole) + 2 * dense_size(whole - frozen))


def test_each_frozen_entry_is_downloaded_once_for_all_windows_and_levels() -> None:
    parts = set_up(Rolling())
    blocks, name = parts.levels.indices, "blocks.1.conv.weight"
    downloads = Downloads(blocks)
    downloads.setup(Facts(frozen={name: torch.empty(blocks["a"].layout.shapes[name])}))
    seen = torch.zeros(blocks["a"].layout.shapes[name], dtype=torch.bool)
    for round, level in enumerate("cbcbbacb"):
        part = parts.part(level, round, 0)
        task = Task(0, level, round, round, part=part)
        held = torch.zeros(seen.shape)
        add_holders({name: held}, part)
        known = int((seen & (held > 0)).sum())
        encoded = encode_part(part, blocks[level], blocks["a"])
        assert downloads.bytes(task) == dense_size(part.size - known) + len(encoded)
        downloads.note(task)
        seen |= held > 0
        assert downloads.bytes(task) == dense_size(part.size - int((held > 0).sum()))
    again = Downloads(blocks)
    again.load_state_dict(downloads.state_dict())
    assert again.bytes(task) == downloads.bytes(task)


class Unsorted(PartRule):
    """Gives what it is told to give in place of a part or of channels."""

    given: Any = None

    def part(self, level: str, round: int, client: int) -> Part:
        if callable(self.given):
            return self.of_channels(level, self.given)
        return self.given  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"a Part \(hetfl.part\) from Unsorted.part but got NoneType"),
        (lambda of, held: torch.arange(held).flip(0), "rising positions within the global model from Unsorted"),
        (lambda of, held: torch.arange(held) + of, "rising positions within the global model from Unsorted"),
        (
            lambda of, held: list(range(held)),
            "a slice or a tensor of torch.int64 as channels from Unsorted but got list",
        ),
    ],
)
def test_a_rule_that_returns_no_part_is_refused(given: Any, message: str) -> None:
    rule = Unsorted()
    rule.given = given
    module = small_module(parts=rule)
    with pytest.raises(ConfigurationError, match=message):
        module.task_parts.drawn(Task(0, "b", 0, 0))
