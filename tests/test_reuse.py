"""Reused modules, clients and data: nothing of one run may affect the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Rprop
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hetfl import ConfigurationError
from hetfl.aggregators.server_step import server_step
from hetfl.compression import ErrorFeedback, GammaFedHT, Identity, TopK
from hetfl.data import IID
from hetfl.federation import FederatedCallback
from hetfl.fleet import Device, Fixed
from hetfl.layout import Index
from hetfl.local import Executor, LocalTraining, Sequential, Workers
from hetfl.models import ConvNet, scaled
from hetfl.selection import Uniform
from hetfl.store import DiskStore
from hetfl.types import Report
from hetfl.updates import Update
from tests.conftest import small_data, small_levels, small_module, small_net

Fit = Callable[..., Trainer]


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.logger.save_dir)) / "metrics.csv")  # type: ignore[union-attr]


def test_another_checkpoint_loaded_into_a_module_is_evaluated_correctly(fit: Fit, tmp_path: Path) -> None:
    paths, expected = [], []
    for seed in (0, 1):
        module = small_module(seed=seed)
        trainer = fit(module, rounds=2, name=f"seed{seed}")
        paths.append(tmp_path / f"{seed}.ckpt")
        trainer.save_checkpoint(paths[-1])
        expected.append(trainer.test(module, datamodule=small_data(), verbose=False)[0]["test/loss"])
    assert expected[0] != expected[1]
    one = small_module()
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for path, loss in zip([*paths, paths[0]], [*expected, expected[0]], strict=True):
        metrics = plain.test(one, datamodule=small_data(), ckpt_path=str(path), verbose=False, weights_only=True)
        assert metrics[0]["test/loss"] == loss


def test_a_second_validation_uses_changed_values(fit: Fit) -> None:
    module, other = small_module(), small_module()
    with torch.no_grad():
        other.net.get_parameter("classifier.weight").mul_(-3.0)
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    before = plain.validate(module, datamodule=small_data(), verbose=False)[0]["val/loss"]
    module.load_state_dict(other.state_dict())
    after = plain.validate(module, datamodule=small_data(), verbose=False)
    expected = plain.validate(other, datamodule=small_data(), verbose=False)[0]["val/loss"]
    assert after[0]["val/loss"] == expected != before


def test_a_second_fit_trains_on_its_own_data(fit: Fit) -> None:
    module, fresh = small_module(), small_module()
    fit(module, small_data(), rounds=1)
    second = small_data(partitioner=IID(), num_clients=6)
    module.load_state_dict(fresh.state_dict())
    module.models.version = 0
    fit(module, second, rounds=1, name="second")
    fit(fresh, second, rounds=1, name="fresh")
    assert torch.equal(weights(module), weights(fresh))


class Failing(Callback):
    """Raises an error at the end of a round."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise OSError("full")


def test_a_fit_after_one_that_raised_trains_on_its_own_data(fit: Fit) -> None:
    """Lightning calls no teardown after an error, so resident nets and workers of the old data are still there."""
    module, fresh = small_module(executor=Workers(1)), small_module()
    with pytest.raises(OSError, match="full"):
        fit(module, small_data(), rounds=1, callbacks=[Failing()])
    second = small_data(partitioner=IID(), num_clients=6)
    module.load_state_dict(fresh.state_dict())
    module.models.version = 0
    fit(module, second, rounds=1, name="second", precision="64-true")
    fit(fresh, second, rounds=1, name="fresh", precision="64-true")
    torch.testing.assert_close(weights(module), weights(fresh), rtol=0, atol=1e-12)


class Cohorts(FederatedCallback):
    """Records the clients with updates, round by round."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rounds.append([])

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.rounds[-1].append(report.client)


def test_a_second_fit_continues_with_the_next_rounds_and_logs_it(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    whole, halves, module = Cohorts(), Cohorts(), small_module()
    fit(small_module(), rounds=4, callbacks=[whole], limit_val_batches=0)
    fit(module, rounds=2, callbacks=[halves], limit_val_batches=0)
    assert "rounds and continues" not in caplog.text
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer = fit(module, rounds=2, name="second", callbacks=[halves], limit_val_batches=0)
    assert halves.rounds == whole.rounds
    assert whole.rounds[:2] != whole.rounds[2:]
    assert rows(trainer)["step"].tolist() == [2, 3]
    assert "has done 2 rounds and continues with round 2" in caplog.text


def test_a_submodel_can_be_extracted_after_training(fit: Fit) -> None:
    module = small_module()
    trainer = fit(module, rounds=2)
    net = module.submodel("b")
    assert torch.equal(net.get_parameter("classifier.bias"), module.net.get_parameter("classifier.bias"))
    assert net(torch.rand(1, 1, 8, 8)).isfinite().all()
    assert trainer.state.finished


class FrozenCountingNet(nn.Module):
    """A net with a frozen parameter, counters and dropout."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        h = scaled(16, width)
        self.first, self.second, self.classifier = nn.Linear(64, h), nn.Linear(h, h), nn.Linear(h, 10)
        self.norm = nn.BatchNorm1d(h, momentum=None)
        self.second.weight.requires_grad_(False)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(torch.relu(self.norm(self.first(x.flatten(1)))))
        return self.classifier(torch.relu(self.second(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("server", [lambda p: SGD(p, lr=1.0), lambda p: AdamW(p, lr=0.1, weight_decay=0.5)])
def test_frozen_parameters_reach_clients_but_are_not_trained_or_uploaded(fit: Fit, server: Any) -> None:
    local = LocalTraining(optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1))
    module = small_module(net=FrozenCountingNet, local=local, server_optimizer=server)
    frozen, free = module.net.get_parameter("second.weight").clone(), module.net.get_parameter("second.bias").clone()
    fit(module, rounds=2)
    assert torch.equal(module.net.get_parameter("second.weight"), frozen)
    assert not torch.equal(module.net.get_parameter("second.bias"), free)
    assert torch.equal(module.submodel("b").get_parameter("second.weight"), frozen[:8, :8])
    assert "second.weight" not in module.sent(module.levels.indices["a"], "a", 0, 0)


def running_net(*, width: float = 1.0) -> nn.Module:
    """Return a net whose norm layers keep running statistics."""
    return small_net(width=width, norm="batch")


BY_DEFAULT = {(FrozenCountingNet, "32-true"), (running_net, "64-true"), (small_net, "bf16-mixed")}
"""Default cases: every net and every precision once; other combinations use no additional code."""


@pytest.mark.parametrize(
    ("net", "precision"),
    [
        pytest.param(net, precision, marks=[] if (net, precision) in BY_DEFAULT else [pytest.mark.slow])
        for net in (FrozenCountingNet, running_net, small_net)
        for precision in ("32-true", "64-true", "bf16-mixed")
    ],
)
def test_counters_dropout_and_precision_give_the_same_bits_for_any_number_of_workers(
    fit: Fit, precision: str, net: Any
) -> None:
    executors: list[Executor] = [Sequential(), Workers(1), Workers(3)]
    results = []
    for number, executor in enumerate(executors):
        module = small_module(net=net, executor=executor, uplink=ErrorFeedback(GammaFedHT(density=0.2)))
        trainer = fit(module, rounds=2, name=f"run{number}", precision=precision, check_val_every_n_epoch=2)
        results.append((torch.cat([t.flatten().double() for t in module.net.state_dict().values()]), rows(trainer)))
    assert results[0][1]["val/accuracy"].notna().tolist() == [False, True]
    for state, table in results[1:]:
        assert torch.equal(state, results[0][0])
        pd.testing.assert_frame_equal(table, results[0][1], check_exact=True)


def test_running_statistics_are_means_over_holders_with_any_compressor(fit: Fit) -> None:
    def moved(uplink: ErrorFeedback) -> dict[str, Tensor]:
        module = small_module(net=running_net, uplink=uplink)
        fit(module, rounds=1, name=type(uplink.compressor).__name__, limit_val_batches=0)
        return {name: buffer for name, buffer in module.net.named_buffers() if "running" in name}

    sparse, exact = moved(ErrorFeedback(TopK(0.01))), moved(ErrorFeedback(TopK(1.0)))
    assert all(torch.equal(sparse[name], exact[name]) for name in exact)


def test_an_exception_in_a_compressor_is_not_a_refused_update(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(*args: object) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(Identity, "apply", apply)
    with pytest.raises(ValueError, match="a mistake"):
        fit(small_module(), rounds=1)


@pytest.mark.filterwarnings("ignore:.*refused")
def test_a_round_without_any_usable_update_ends_the_run_with_the_reason(fit: Fit) -> None:
    local = LocalTraining(optimizer=lambda p: SGD(p, lr=1e30))
    with pytest.raises(ConfigurationError, match="round 1 but all 4 were refused"):
        fit(small_module(local=local), rounds=1)


def test_rprop_step_sizes_of_entries_without_holders_stay_initial() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = Rprop([p], lr=0.1)
    held = torch.tensor([1.0, 0.0])
    server_step(optimizer, optimizer.step, {"p": p}, {"p": held}, {"p": held})
    assert optimizer.state[p]["step_size"][1] == pytest.approx(0.1)


class TwoHeads(nn.Module):
    """Registers a layer of K outputs after the layer that gives the logits."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.head = nn.Linear(10, 10)
        self.middle = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(x.flatten(1))))  # type: ignore[no-any-return]


def test_the_classifier_is_the_layer_that_gives_the_logits(fit: Fit) -> None:
    module = small_module(net=TwoHeads, levels=small_levels(1.0))
    fit(module, rounds=1)
    module.setup("fit")
    assert module.classifier == {"head.weight", "head.bias"}


def small_net_of(**changes: Any) -> Callable[..., nn.Module]:
    return lambda *, width=1.0: ConvNet(**{"hidden": (8, 16), "width": width, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": small_net_of(in_channels=3)}, "inputs of float32 .4, 1, 8, 8."),
        ({"net": small_net_of(num_classes=5)}, "outputs of shape .4, 10."),
        ({"local": LocalTraining(optimizer=lambda p: SGD(p, lr=-1.0))}, "learning rate"),
        ({"server_optimizer": lambda p: AdamW(p, lr=-1.0)}, "learning rate"),
        ({"server_optimizer": lambda p: torch.optim.LBFGS(p)}, "closure"),
        ({"local": LocalTraining(scheduler=lambda o: ReduceLROnPlateau(o))}, "ReduceLROnPlateau"),
        ({"assignment": Fixed({"a": 10, "b": 10})}, "at least 20 clients"),
        ({"selection": Uniform(50)}, "12, but got 50"),
    ],
)
def test_settings_that_would_fail_in_a_round_are_refused_before_it(
    fit: Fit, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(small_module(**changes), rounds=1)
    assert "\n" not in str(error.value)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="throughput"):
        Device(throughput=0)
    with pytest.raises(ConfigurationError, match="statistics_clients"):
        small_module(statistics_clients=0)


def test_a_level_that_no_client_can_run_gives_a_warning_and_is_evaluated(fit: Fit) -> None:
    with pytest.warns(UserWarning, match="No client can run level a: clients of level b gather"):
        trainer = fit(small_module(assignment=Fixed({"b": 1})), rounds=1)
    assert rows(trainer)["val/accuracy"].notna().all()


def test_residuals_on_disk_need_a_run_folder_and_are_copied_to_the_next_run(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder for DiskStore"):
        fit(small_module(uplink=ErrorFeedback(TopK(0.1), DiskStore())), rounds=1, logger=False)
    module = small_module(uplink=ErrorFeedback(TopK(0.1), DiskStore()))
    fit(module, rounds=2, name="one")
    before = {client: module.uplink.residuals.load(client) for client in module.uplink.residuals.clients()}
    assert before
    module.uplink.residuals.bind(str(tmp_path / "two"))
    assert all(
        torch.equal(module.uplink.residuals.load(client)[name], block)
        for client, blocks in before.items()
        for name, block in blocks.items()
    )
