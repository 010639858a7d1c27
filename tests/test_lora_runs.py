"""Runs of adapters of several ranks: equal numbers, rank collapse, downloads, memory, executors, resuming."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.optim import SGD, AdamW

from hetfl import FedAvg, HeteroFL, Level
from hetfl.aggregators import HolderMean, ProductMean, SampleMean, ZeroPadMean
from hetfl.compression import DynamicRange, ErrorFeedback, GammaFedHT, Identity, TopK
from hetfl.downlink import Downlink
from hetfl.errors import ConfigurationError
from hetfl.factors import pairs_of, product
from hetfl.fleet import Fixed, SelfPruned
from hetfl.local import FedDyn, LocalTraining, Stacked, Workers
from hetfl.local.resident import ResidentNet
from hetfl.methods import FjORD, FLoRA, HetLoRA
from hetfl.parts import AlternatingFactors, TrainedRanks
from hetfl.piece import Facts, Piece
from hetfl.selection import Uniform
from hetfl.submodel import frozen_of
from hetfl.testing import check_part_rule
from hetfl.types import Task
from hetfl.wire import dense_size
from tests.lora_cases import IMAGES, adapted, lora_module, ranks

Fit = Callable[..., Trainer]
FAST: dict[str, Any] = {"rounds": 2, "limit_val_batches": 0}


def trained(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.models.tensors[0].items()}


def frozen_names(module: Any) -> set[str]:
    return set(frozen_of(module.net))


def metrics(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


def test_adapters_of_one_rank_by_two_routes_are_the_same_bits(fit: Fit) -> None:
    """A level of rank R is FedAvg of a net whose rank is R, whatever other levels there are."""
    alone = lora_module(net=adapted(), levels={"a": Level("a")})
    several = lora_module(levels=ranks(4, 2, 1), assignment=One())
    for module in (alone, several):
        fit(module, **FAST)
    one, other = trained(alone), trained(several)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any("lora_B" in name and bool(one[name].any()) for name in one)


class One(Fixed):
    """All clients have the largest level."""

    def draw(self, round: int) -> Any:
        return np.zeros(self.num_clients, np.int64)


@pytest.mark.parametrize("rule", [SampleMean, HolderMean, ProductMean])
def test_a_round_without_training_changes_no_bit(fit: Fit, rule: Any) -> None:
    """With a learning rate of 0 clients are idle, after a round that has given all products values."""

    class Switch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                self.before = trained(module)
                trainer.optimizers[1].param_groups[0]["lr"] = 0.0

    switch = Switch()
    module = lora_module(aggregator=rule())
    fit(module, callbacks=[switch], **FAST)
    after = trained(module)
    assert all(torch.equal(after[name], tensor) for name, tensor in switch.before.items())
    assert any(bool(tensor.any()) for name, tensor in after.items() if "lora_B" in name)


class Spectra(Callback):
    """Keeps the share of the largest ranks, those that a quarter of the clients holds, in the adapters' products."""

    def __init__(self) -> None:
        self.curve: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        tensors, tail, whole = trained(module), 0.0, 0.0
        for a, b in pairs_of(tensors).values():
            whole += float(product(tensors[a], tensors[b]).square().sum())
            tail += float(product(tensors[a][2:], tensors[b][..., 2:]).square().sum())
        self.curve.append((tail / whole) ** 0.5)


def test_zero_padding_loses_the_large_ranks_and_the_mean_over_holders_does_not(fit: Fit) -> None:
    curves = {}
    for name, rule in (("holders", SampleMean()), ("padded", ZeroPadMean())):
        spectra = Spectra()
        assignment = Fixed({"a": 1, "b": 1, "c": 2})
        module = lora_module(aggregator=rule, assignment=assignment, selection=Uniform(12))
        fit(module, rounds=4, callbacks=[spectra], limit_val_batches=0)
        curves[name] = spectra.curve
    assert curves["holders"][-1] > 0.3
    assert all(
        padded < 0.25 * holders for padded, holders in zip(curves["padded"][1:], curves["holders"][1:], strict=True)
    )


def test_the_base_is_downloaded_once_or_never_and_never_sent(fit: Fit) -> None:
    totals = {}
    for base in ("download", "preinstalled"):
        module = lora_module(levels=ranks(4, 2), selection=Uniform(12), assignment=Fixed({"a": 1, "b": 1}), base=base)
        fit(module, rounds=3, limit_val_batches=0)
        totals[base] = module.ledger.total
        before = trained(module)
        assert all(name in frozen_names(module) for name in before if "lora" not in name and "classifier" not in name)
    sizes = {level: module.task_parts.predicted()[0][level] for level in "ab"}
    frozen = sum(parameter.numel() for parameter in frozen_of(module.net).values())
    assert sizes == {level: module.levels.sizes[level] - frozen for level in "ab"}
    dense = sum(6 * 3 * dense_size(size) for size in sizes.values())
    assert totals["preinstalled"].down_bytes == totals["preinstalled"].up_bytes == dense
    assert totals["download"].up_bytes == dense
    assert totals["download"].down_bytes == dense + 12 * 4 * frozen
    assert "preinstalled base " in module.downloads.describe()
    other = lora_module(base="preinstalled", seed=1)
    other.downloads.setup(Facts(frozen=frozen_of(other.net)))
    assert other.downloads.describe() != module.downloads.describe()


def test_a_client_needs_no_memory_for_a_second_base(fit: Fit) -> None:
    """The tensors of a client's net: its vectors have the adapters, and its base is the global model's."""
    module = lora_module(net=adapted(net=partial(IMAGES, hidden=(64, 64))), local=LocalTraining(optimizer=AdamW))
    fit(module, **FAST)
    module.hosting.open(module.data)
    resident: ResidentNet = module.hosting.bench.resident(Task(0, "b", 0, module.models.mark))
    adapters = sum(p.numel() for p in resident.net.parameters() if p.requires_grad)
    base = sum(p.numel() for p in resident.frozen.values())
    assert base > 20 * adapters / 2
    assert len(resident.flat_D) == len(resident.anchor_D) == len(resident.vector.grad) == adapters  # type: ignore[arg-type]
    whole = module.models.tensors[0]
    storages = {tensor.untyped_storage().data_ptr() for tensor in whole.values()}
    assert all(p.grad is None and p.untyped_storage().data_ptr() in storages for p in resident.frozen.values())
    states = [state for group in resident.optimizer.param_groups for p in group["params"] for state in [p.numel()]]
    assert sum(states) == adapters
    own = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in (resident.flat_D, resident.anchor_D)}
    assert sum(own.values()) == 2 * 4 * adapters


def test_a_hook_that_changes_the_base_is_refused(fit: Fit) -> None:
    class Clipped(FedAvg):
        def after_step(self, net: Any, ctx: Any) -> None:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.clamp_(-0.5, 0.5)

    with pytest.raises(ConfigurationError, match=r"change trained parameters alone but got another 'net\.blocks\.0"):
        fit(lora_module(Clipped), **FAST)


@pytest.mark.parametrize(
    ("executor", "parts"),
    [
        (lambda: Workers(2), lambda: TrainedRanks({"a": 2, "b": 1})),
        (lambda: Stacked(4), lambda: None),
        (lambda: Stacked(4), lambda: TrainedRanks({"a": 2, "b": 1})),
        (lambda: Workers(2, Stacked(2)), AlternatingFactors),
    ],
)
def test_executors_agree(fit: Fit, executor: Any, parts: Any) -> None:
    """Float64: sequential clients, worker processes, and several clients at once, with weight decay and momentum."""
    runs = []
    for each in (None, executor()):
        module = lora_module(levels=ranks(4, 2), parts=parts(), executor=each, uplink=ErrorFeedback(TopK(0.3)))
        fit(module, precision="64-true", **FAST)
        runs.append(trained(module))
    assert all(torch.allclose(runs[0][name], runs[1][name], rtol=1e-7, atol=1e-9) for name in runs[0])


@pytest.mark.parametrize(
    ("parts", "moves"),
    [
        (AlternatingFactors(), {0: {"lora_B", "classifier"}, 1: {"lora_A", "classifier"}}),
        (None, {0: {"lora_A", "lora_B", "classifier"}}),
    ],
)
def test_only_what_is_sent_is_trained(fit: Fit, parts: Any, moves: dict[int, set[str]]) -> None:
    """Weight decay moves no factor that rests, on the client as on the server."""

    class Moves(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            self.before = trained(module)

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            after = trained(module)
            moved = {name for name in after if not torch.equal(after[name], self.before[name])}
            kinds = {
                kind
                for kind in ("lora_A", "lora_B", "classifier", "blocks.0.conv.weight")
                if any(kind in n for n in moved)
            }
            if trainer.current_epoch in moves:
                assert kinds == moves[trainer.current_epoch]

    decaying = LocalTraining(batch_size=20, optimizer=partial(SGD, lr=0.1, weight_decay=0.1))
    fit(lora_module(parts=parts, local=decaying), callbacks=[Moves()], **FAST)


def test_frozen_a_halves_the_uplink(fit: Fit) -> None:
    frozen = lora_module(net=adapted(freeze="A"), selection=Uniform(12))
    fit(frozen, **FAST)
    names = frozen.levels.indices["a"].keys() - frozen_names(frozen)
    assert not any("lora_A" in name for name in names)
    sent = sum(frozen.task_parts.upload_sizes(frozen.data)[level].size for level in "abc")
    b = {
        level: sum(s for n, s in zip(i, i.layout.sizes, strict=True) if n in names)
        for level, i in frozen.levels.indices.items()
    }
    assert sent == sum(b.values())


def test_a_client_that_trains_fewer_ranks_than_it_receives(fit: Fit) -> None:
    parts = TrainedRanks({"b": 1})
    module = lora_module(levels={"a": Level(rank=4), "b": Level(rank=4)}, parts=parts, assignment=AllSecond())
    before = trained(module)
    fit(module, **FAST)
    after = trained(module)
    a, b = next(iter(pairs_of(after).values()))
    assert torch.equal(after[a][1:], before[a][1:])
    assert torch.equal(after[b][..., 1:], before[b][..., 1:])
    assert not torch.equal(after[b][..., 0], before[b][..., 0])
    shapes = module.levels.indices["b"].layout.shapes
    assert shapes[a][0] == 4
    for trained_ranks, message in (
        ({"z": 1}, r"levels among \['a', 'b'\] in trained but got 'z'"),
        ({"b": 5}, "at most the 4 ranks of level b in trained but got 5"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            lora_module(levels={"a": Level(rank=4), "b": Level(rank=4)}, parts=TrainedRanks(trained_ranks))


class AllSecond(Fixed):
    """All clients have the second level."""

    def draw(self, round: int) -> Any:
        return np.ones(self.num_clients, np.int64)


def test_product_mean_refuses_residuals_and_memories_before_the_first_round(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="Expected clients without residuals for ProductMean"):
        fit(lora_module(aggregator=ProductMean(), uplink=ErrorFeedback(GammaFedHT(density=0.1))), **FAST)
    local = LocalTraining(batch_size=20, optimizer=partial(SGD, lr=0.1), penalty=FedDyn(0.1))
    with pytest.raises(ConfigurationError, match="Expected clients without memories for ProductMean"):
        fit(lora_module(aggregator=ProductMean(), local=local), **FAST)
    fit(lora_module(aggregator=ProductMean(), uplink=ErrorFeedback(TopK(0.5), enabled=False)), **FAST)
    fit(lora_module(aggregator=ProductMean(), uplink=ErrorFeedback(Identity())), **FAST)


def test_self_pruning_moves_clients_whose_tail_falls(fit: Fit) -> None:
    """A strong penalty shrinks every tail; without one, products grow from zero, and so do the tails."""
    for penalty, down in ((1e3, True), (0.0, False)):
        assignment = SelfPruned()
        local = LocalTraining(batch_size=20, gradient_clip=1.0, optimizer=partial(SGD, lr=0.05))
        module = lora_module(HetLoRA, penalty=penalty, assignment=assignment, local=local, selection=Uniform(12))
        trainer = fit(module, **FAST)
        moved = metrics(trainer)["assignment/levels_down"].to_numpy()
        assert (np.diff(moved) >= 0).all()
        assert (moved[-1] > 0) == down, (penalty, moved)
    with pytest.raises(ConfigurationError, match="an assignment that reads tail scores for HetLoRA"):
        lora_module(HetLoRA, assignment=Fixed())
    with pytest.raises(ConfigurationError, match=r"levels of falling ranks for HetLoRA but got \[4, None\]"):
        lora_module(HetLoRA, levels={"a": Level(rank=4), "b": Level()})


def test_ordered_ranks_train_every_batch_at_a_drawn_rank(fit: Fit) -> None:
    module = lora_module(FjORD, distillation=False)
    trainer = fit(module, rounds=3)
    assert metrics(trainer)["train/loss"].iloc[-1] < metrics(trainer)["train/loss"].iloc[0]
    assert module.affordable == {"a": ["a", "b", "c"], "b": ["b", "c"], "c": ["c"]}


@pytest.mark.parametrize(
    "changes",
    [
        lambda: {"uplink": ErrorFeedback(GammaFedHT(density=0.2)), "parts": AlternatingFactors()},
        lambda: {"aggregator": ProductMean(), "base": "preinstalled"},
    ],
)
def test_a_resumed_run_has_the_same_bits(fit: Fit, tmp_path: Path, changes: Callable[[], dict[str, Any]]) -> None:
    whole = lora_module(**changes())
    fit(whole, rounds=3, name="whole", limit_val_batches=0)
    first = lora_module(**changes())
    trainer = fit(first, rounds=1, name="first", limit_val_batches=0)
    trainer.save_checkpoint(path := str(tmp_path / "half.ckpt"))
    second = lora_module(**changes())
    fit(second, rounds=3, name="second", ckpt=path, limit_val_batches=0)
    expected, got = trained(whole), trained(second)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert whole.ledger.total == second.ledger.total


def test_levels_of_width_still_work_beside_adapters(fit: Fit) -> None:
    levels = {"a": Level(rank=4), "b": Level(width=0.5, rank=2)}
    module = lora_module(HeteroFL, levels=levels)
    before = trained(module)
    fit(module, **FAST)
    after = trained(module)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == after.keys() - frozen_names(module)


@pytest.mark.parametrize("rule", ["FLoRA", "ProductMean"])
def test_rules_for_products_refuse_levels_of_several_scales_and_take_widths(fit: Fit, rule: str) -> None:
    stacking: dict[str, Any] = {"kind": FLoRA, "aggregator": None, "base": "preinstalled"}
    settings = stacking if rule == "FLoRA" else {"aggregator": ProductMean()}
    local = lora_module(**settings, net=adapted(scale="local"), check_nesting=False)
    with pytest.raises(ConfigurationError, match=f"one scale .* for {rule} but got 2 at level a and 4 at level b"):
        fit(local, rounds=1)
    levels = {"a": Level(rank=4), "b": Level(width=0.5, rank=2)}
    fit(lora_module(**settings, net=adapted(scale="rslora"), levels=levels), name="widths", **FAST)


def test_stacking_merges_the_exact_mean_of_products(fit: Fit) -> None:
    """One round of FLoRA on the updates of a round, in float64: the base has the mean of the products of all ranks."""

    class Products(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            self.before, self.total = trained(module), 0.0
            self.sums: dict[str, Any] = {}

        def note(self, module: Any, update: Any, index: Any, report: Any) -> None:
            deltas = index.layout.views(update.whole())
            self.total += report.samples
            for layer, (a, b) in pairs_of(index).items():
                rank = len(deltas[a])
                factors = self.before[a][:rank] + deltas[a], self.before[b][..., :rank] + deltas[b]
                self.sums[layer] = self.sums.get(layer, 0.0) + report.samples * product(*factors)

    products = Products()

    class Noted(FLoRA):
        def __init__(self, net: Any, levels: Any = None, **settings: Any) -> None:
            super().__init__(net, levels, **settings)
            self.noted = Noting()

    class Noting(Piece):
        def observe(self, update: Any, index: Any, report: Any) -> None:
            products.note(None, update, index, report)

    module = lora_module(Noted, aggregator=None, base="preinstalled")
    fit(module, rounds=1, limit_val_batches=0, precision="64-true", callbacks=[products])
    after = trained(module)
    for layer, total in products.sums.items():
        weight = f"{layer}.weight"
        assert torch.allclose(after[weight] - products.before[weight], 2.0 * total / products.total, atol=1e-12)
        assert not after[f"{layer}.lora_B"].any()
        assert not torch.equal(after[f"{layer}.lora_A"], products.before[f"{layer}.lora_A"])


def test_clients_download_the_stacks_that_they_have_missed(fit: Fit, tmp_path: Path) -> None:
    def make() -> Any:
        return lora_module(FLoRA, aggregator=None, base="preinstalled", levels=ranks(2, 1), selection=Uniform(3))

    module = make()
    trainer = fit(module, rounds=2, limit_val_batches=0, name="first")
    trainer.save_checkpoint(path := str(tmp_path / "half.ckpt"))
    rule = module.aggregator.first
    stacks, merged = rule._stacks, rule._merged
    assert len(stacks) == 2
    assert min(stacks) > 0
    assert set(merged.values()) <= {0, 1}
    whole = sum(p.numel() for name, p in frozen_of(module.net).items() if name.endswith("conv.weight"))
    for client, known in merged.items():
        assert rule.shared_bytes(client) == 4 * min(sum(stacks[known:]), whole)
    assert rule.shared_bytes(next(iter(set(range(12)) - merged.keys()))) == 4 * min(sum(stacks), whole)
    resumed, straight = make(), make()
    fit(resumed, rounds=4, name="resumed", ckpt=path, limit_val_batches=0)
    fit(straight, rounds=4, name="straight", limit_val_batches=0)
    one, other = trained(resumed), trained(straight)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.ledger.total == straight.ledger.total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "download"}, "base preinstalled, and no aggregator, for FLoRA but got base download"),
        ({"aggregator": SampleMean()}, "no aggregator, for FLoRA but got an aggregator"),
        ({"net": IMAGES, "levels": None}, "a net with adapters for FLoRA but got ConvNet"),
    ],
)
def test_what_stacking_cannot_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lora_module(FLoRA, **{"aggregator": None, "base": "preinstalled", **changes})


@pytest.mark.parametrize("rule", [AlternatingFactors, lambda: TrainedRanks({"a": 3, "b": 1})])
def test_part_rules_fulfil_the_contract(rule: Any) -> None:
    check_part_rule(rule, adapted(), levels=ranks(4, 2))


def test_coded_downloads_leave_the_base_out(fit: Fit) -> None:
    """The base travels once as float32, or never; factors travel as codes."""
    down = {}
    for base in ("download", "preinstalled"):
        downlink = Downlink(DynamicRange(8, 64), exact=["*bias"])
        module = lora_module(downlink=downlink, base=base, levels=ranks(4), selection=Uniform(12))
        fit(module, **FAST)
        down[base] = module.ledger.total.down_bytes
    frozen = sum(parameter.numel() for parameter in frozen_of(module.net).values())
    assert down["download"] - down["preinstalled"] == 12 * 4 * frozen
    assert down["preinstalled"] < 0.5 * 2 * 12 * dense_size(module.levels.sizes["a"] - frozen)
