"""Whole rounds against a plain NumPy server and a bare PyTorch client, and settings that must not change results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR

from hetfl import ConfigurationError, FedAvg, FederatedModule, HeteroFL
from hetfl.aggregators import SampleMean
from hetfl.compression import ErrorFeedback, GammaFedHT, Identity, TopK
from hetfl.data import IID, Dirichlet, LabelShards
from hetfl.fleet import Dynamic, Fixed
from hetfl.local import LocalTraining, Workers
from hetfl.local.training import batches
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection import Everyone, Uniform
from hetfl.types import ClientContext, Level
from tests.conftest import small_data, small_levels, small_module, small_net

Fit = Callable[..., Trainer]


def masked_cross_entropy(logits: Tensor, targets: Tensor, owned: Tensor) -> Tensor:
    """Return HeteroFL's loss, computed sample by sample and class by class."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        filled = [row[k] if owned[k] else torch.zeros((), dtype=row.dtype) for k in range(len(row))]
        losses.append(torch.logsumexp(torch.stack(filled), 0) - filled[int(target)])
    return torch.stack(losses).mean()


def plain_heterofl(
    module: FederatedModule, rounds: int, lr: Callable[[int], float], weigh: Callable[[int], float], masked: bool
) -> dict[str, np.ndarray]:
    """Train by algorithm 1 of the paper: dictionaries of arrays, one scalar at a time on the server."""
    data, local = module.data, module.local
    whole = {name: p.detach().numpy().copy() for name, p in module.levels.net.double().named_parameters()}
    for round in range(rounds):
        results = []
        for client in module.selection.select(round, Everyone(len(module.selection.sizes))):
            width = module.levels[module.assignment.levels(round)[client]].width
            net = small_net(width=width).double().train()
            for name, p in net.named_parameters():
                p.data = torch.from_numpy(whole[name][tuple(slice(0, s) for s in p.shape)].copy())
            optimizer = SGD(net.parameters(), lr=lr(round), momentum=0.9, weight_decay=5e-4)
            samples, random = data.client_data(client), generator(module.seed, "local", round, client)
            for _ in range(local.epochs):
                for batch in batches(len(samples.targets), local.batch_size, random):
                    logits = net(data.transform.eval(samples.inputs[batch]).double())
                    owned = data.labels(client) if masked else torch.ones(10, dtype=torch.bool)
                    optimizer.zero_grad()
                    masked_cross_entropy(logits, samples.targets[batch], owned).backward()
                    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                    optimizer.step()
            results.append((client, {name: p.detach().numpy() for name, p in net.named_parameters()}))
        for name, values in whole.items():
            total, count = np.zeros_like(values), np.zeros_like(values)
            for client, trained in results:
                for where in np.ndindex(*trained[name].shape):
                    if masked and name.startswith("classifier") and not data.labels(client)[where[0]]:
                        continue
                    total[where] += weigh(client) * trained[name][where]
                    count[where] += weigh(client)
            values[count > 0] = total[count > 0] / count[count > 0]
    return whole


LOCAL = LocalTraining(
    epochs=2,
    batch_size=10,
    gradient_clip=1.0,
    optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    scheduler=lambda optimizer: MultiStepLR(optimizer, milestones=[2], gamma=0.1),
)


@pytest.mark.parametrize("weighted", [False, True])
def test_three_rounds_of_heterofl_equal_the_papers_algorithm(fit: Fit, weighted: bool) -> None:
    module = small_module(
        local=LOCAL, levels=small_levels(1.0, 0.6, 0.25), aggregator=SampleMean() if weighted else None
    )
    data = small_data(partitioner=LabelShards(2), num_clients=10)
    trainer = fit(module, data, rounds=3, precision="64-true", limit_val_batches=0)
    got = {name: p.detach().numpy().copy() for name, p in module.net.named_parameters()}
    fresh = small_module(local=LOCAL, levels=small_levels(1.0, 0.6, 0.25))
    fresh.trainer = trainer
    fresh.setup("fit")
    sizes = data.sizes
    weigh = (lambda k: float(sizes[k])) if weighted else (lambda k: 1.0)
    torch.set_default_dtype(torch.float64)  # as Lightning does in a run of precision 64-true
    try:
        expected = plain_heterofl(fresh, 3, lambda t: 0.05 if t < 2 else 0.005, weigh, masked=True)
    finally:
        torch.set_default_dtype(torch.float32)
    moved = 0.0
    for name, values in expected.items():
        assert np.allclose(got[name], values, rtol=0, atol=1e-10), name
        moved = max(moved, float(np.abs(got[name] - fresh.net.state_dict()[name].numpy()).max()))
    assert moved > 0.01


def test_one_level_of_full_width_is_fedavg(fit: Fit) -> None:
    heterofl = small_module(HeteroFL, levels=small_levels(1.0), aggregator=SampleMean())
    fedavg = small_module(FedAvg, levels=None)
    data = small_data(partitioner=IID(), num_clients=6)
    for module in (heterofl, fedavg):
        fit(module, data, rounds=3)
    for one, two in zip(heterofl.net.parameters(), fedavg.net.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_absent_class_gets_no_gradient_but_counts_in_the_softmax(fit: Fit) -> None:
    module = small_module()
    labels = torch.tensor([True, False, True])
    logits = torch.tensor([[1.0, 5.0, -1.0]], requires_grad=True)
    loss = module.loss(logits, torch.tensor([0]), ClientContext(0, 0, labels))
    assert loss.item() == pytest.approx(float(np.log(np.e + 1 + 1 / np.e) - 1))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    # With a leading client dimension: one loss per client.
    both = module.loss(
        logits.detach().expand(2, 1, 3),
        torch.tensor([[0], [0]]),
        ClientContext(0, 0, torch.stack([labels, labels | True])),
    )
    assert both.shape == (2,)
    assert both[0].item() == pytest.approx(loss.item())
    assert both[1].item() != pytest.approx(loss.item())

    data = small_data(partitioner=LabelShards(1), num_clients=10)
    module = small_module(selection=Uniform(3))
    before = module.net.classifier.weight.detach().clone()  # type: ignore[union-attr,operator]
    fit(module, data, rounds=1, limit_val_batches=0)
    owned = torch.stack([data.labels(k) for k in module.selection.select(0, Everyone(data.num_clients))]).any(0)
    moved = (module.net.classifier.weight.detach() != before).any(1)  # type: ignore[union-attr,operator]
    assert torch.equal(moved, owned)
    assert 0 < int(owned.sum()) < 10


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]


def compressed() -> ErrorFeedback:
    return ErrorFeedback(GammaFedHT(density=0.1, final_lr=0.01))


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_in_every_executor(fit: Fit) -> None:
    runs: list[tuple[str, int, dict[str, Any]]] = [
        ("first", 0, {}),
        ("again", 0, {}),
        ("workers1", 0, {"executor": Workers(1)}),
        ("workers3", 0, {"executor": Workers(3)}),
        ("other", 1, {}),
    ]
    tables = [
        rows(fit(small_module(uplink=compressed(), seed=seed, **changes), small_data(seed=seed), name=name))
        for name, seed, changes in runs
    ]
    assert len(tables[0]) == 3
    assert tables[0]["val/accuracy"].notna().all()
    for table in tables[1:4]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    assert not tables[4]["train/loss"].equals(tables[0]["train/loss"])


def test_a_resumed_run_equals_an_uninterrupted_run(fit: Fit, tmp_path: Path) -> None:
    def module() -> FederatedModule:
        return small_module(uplink=compressed(), local=LOCAL, server_optimizer=lambda p: Adam(p, lr=0.01))

    whole, first, second = module(), module(), module()
    straight = fit(whole, rounds=4, name="straight")
    interrupted = fit(first, rounds=2, name="interrupted")
    interrupted.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)  # noqa: TID251 - plain types and tensors alone
    assert saved["hetfl"]["version"] == 2
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=interrupted.logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(second, datamodule=small_data(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    for one, two in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(one, two)
    assert whole.uplink.norm() == second.uplink.norm() > 0
    pd.testing.assert_frame_equal(rows(straight), rows(trainer), check_exact=True)


def test_a_diverged_client_is_refused_and_the_round_continues(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Uniform(4)
    bad.setup(Facts([10] * 12))
    victim = bad.select(0, Everyone(12))[1]
    plain = HeteroFL.loss

    def loss(module: HeteroFL, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return plain(module, outputs, targets, ctx) * (float("nan") if ctx.client == victim else 1.0)

    monkeypatch.setattr(HeteroFL, "loss", loss)
    module = small_module(uplink=compressed())
    with pytest.warns(UserWarning, match=f"client {victim} at level . refused"):
        trainer = fit(module, rounds=1)
    assert rows(trainer)["comm/refused"].tolist() == [1]
    assert all(bool(p.isfinite().all()) for p in module.net.parameters())
    assert victim not in module.uplink.residuals.clients()


def test_bytes_and_density_equal_those_of_the_encoded_messages(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(uplink=ErrorFeedback(TopK(0.1)), levels=small_levels(1.0))
    sizes: list[int] = []
    prepare = module.uplink.prepare

    def spy(*args: object, **kwargs: object) -> object:
        message = prepare(*args, **kwargs)  # type: ignore[arg-type]
        sizes.append(len(message.payload))
        return message

    monkeypatch.setattr(module.uplink, "prepare", spy)
    trainer = fit(module, small_data(partitioner=IID()), rounds=2, limit_val_batches=0)
    table = rows(trainer)
    dense = 4 * sum(p.numel() for p in module.net.parameters())
    assert table["comm/up_bytes"].tolist() == [sum(sizes[:4]), sum(sizes[4:])]
    assert table["comm/up_bytes_total"].tolist() == [sum(sizes[:4]), sum(sizes)]
    assert table["comm/up_ratio"].tolist() == pytest.approx([4 * dense / sum(sizes[:4]), 4 * dense / sum(sizes[4:])])
    assert table["comm/up_ratio_total"].tolist() == pytest.approx([4 * dense / sum(sizes[:4]), 8 * dense / sum(sizes)])
    assert table["comm/up_density"].tolist() == pytest.approx([0.1, 0.1], abs=1e-3)
    # Down: 4 dense models a round, each with a header shorter than 100 bytes.
    assert 4 * dense < table["comm/down_bytes"][0] < 4 * (dense + 100)


def test_statistics_cost_bytes_and_flops_and_are_gathered_only_for_an_evaluation(fit: Fit) -> None:
    without = rows(fit(small_module(), rounds=2, name="without", limit_val_batches=0))
    every = rows(fit(small_module(), rounds=2, name="every"))
    second = rows(fit(small_module(), rounds=2, name="second", check_val_every_n_epoch=2))
    for column in ("comm/up_bytes", "comm/down_bytes", "sim/round_seconds"):
        assert (every[column] > without[column]).all()
        assert second[column].tolist() == [without[column][0], every[column][1]]
    assert every["compute/flops_total"][1] > second["compute/flops_total"][1] > without["compute/flops_total"][1]
    assert without["train/loss"].tolist() == every["train/loss"].tolist() == second["train/loss"].tolist()


def test_every_level_reaches_a_good_test_accuracy(fit: Fit) -> None:
    """Statistics, slices and the Scaler in evaluation: a few rounds on IID data reach much more than chance."""
    module = small_module(selection=Uniform(6), local=LocalTraining(5, 20, 1.0, lambda p: SGD(p, 0.1, 0.9)))
    data = small_data(partitioner=IID(), num_clients=8, val_fraction=0.1)
    trainer = fit(module, data, rounds=6, check_val_every_n_epoch=6)
    result = trainer.test(module, datamodule=data, verbose=False)[0]
    # Level c has 2 and 4 channels: its accuracy is low, but far above the 0.1 of wrong statistics.
    for level, least in (("a", 0.85), ("b", 0.7), ("c", 0.3)):
        assert result[f"test/accuracy_by_level/{level}"] > least
    assert result["test/accuracy"] == result["test/accuracy_by_level/a"]
    table = rows(trainer)
    assert len(table) == 6
    assert table["test/accuracy"].notna().tolist() == [False] * 5 + [True]


def test_any_torch_optimizer_can_be_the_server_optimizer(fit: Fit) -> None:
    module = small_module(FedAvg, levels=None, server_optimizer=lambda p: Adam(p, lr=0.01))
    before = [p.detach().clone() for p in module.net.parameters()]
    trainer = fit(module, rounds=2)
    assert trainer.global_step == 2
    # Adam's first steps move every entry by about the learning rate.
    for one, two in zip(before, module.net.parameters(), strict=True):
        assert 0.001 < float((one - two.detach()).abs().max()) <= 0.0201


def test_fixed_and_dynamic_assignment_follow_their_proportions(fit: Fit) -> None:
    fixed, dynamic = Fixed({"a": 2, "b": 1}), Dynamic({"a": 3, "b": 1})
    fixed.setup(Facts([1] * 10, 0, ["a", "b"]))
    dynamic.setup(Facts([1] * 2000, 0, ["a", "b"]))
    # 10 div 3 = 3: six clients at a, three at b, and the remaining one at the last level.
    assert fixed.levels(0) == fixed.levels(7) == ["a"] * 6 + ["b"] * 4
    assert dynamic.levels(1) != dynamic.levels(0) == dynamic.levels(0)
    assert dynamic.levels(0).count("a") / 2000 == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"levels": {"a": Level("a", 0.5)}}, {}, "width 1, but got level a of width 0.5"),
        ({"levels": {"a": Level("a"), "b": Level("b", 0.0)}}, {}, "width in .0, 1. for level b but got 0.0"),
        ({"levels": {"a": Level("a"), "b": Level("b", 1.5)}}, {}, "width in .0, 1. for level b but got 1.5"),
        ({"levels": {"a": Level("a"), "b/c": Level("b", 0.5)}}, {}, "level names .* 'b/c'"),
        ({"levels": {"a": Level("a"), "b": Level("b", 0.5, depth=2)}}, {}, "'depth'"),
        ({"assignment": Dynamic({"z": 1})}, {}, "'z'"),
        ({"assignment": Fixed({"a": 0})}, {}, "positive proportion for level a but got 0"),
        ({"selection": Uniform(13)}, {}, "number of clients, 12, but got 13"),
        ({}, {"limit_train_batches": 0}, "limit_train_batches of at least 1 or null, .* got 0: no round would be run"),
        ({}, {"max_steps": 0}, "trainer.max_steps, a limit of the rounds, of at least 1 but got 0"),
    ],
)
def test_impossible_settings_are_refused_before_the_first_round(
    fit: Fit, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(small_module(**changes), rounds=1, **options)
    assert "\n" not in str(error.value)


def test_identity_stores_no_residual(fit: Fit) -> None:
    module = small_module(uplink=ErrorFeedback(Identity()))
    trainer = fit(module, rounds=2)
    assert not list(module.uplink.residuals.clients())
    assert rows(trainer)["residual/norm"].tolist() == [0, 0]


def test_labels_of_dirichlet_clients_match_their_samples(fit: Fit) -> None:
    data = small_data(partitioner=Dirichlet(0.5))
    fit(small_module(), data, rounds=1)
    for client in range(12):
        assert torch.equal(data.labels(client), torch.bincount(data.client_data(client).targets, minlength=10) > 0)
