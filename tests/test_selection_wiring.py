"""Effects of a selection policy on a run: weights of clients, refused combinations, and the place of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hetfl import ConfigurationError, FedAvg, HeteroFL
from hetfl.aggregators import HolderMean, SampleMean, SelectionMean
from hetfl.data import IID
from hetfl.federation.callback import FederatedCallback
from hetfl.layout import Index
from hetfl.part import index_layout
from hetfl.selection import DivFL, PowerOfChoice, Selection, SizeWeighted
from hetfl.store import DiskStore
from hetfl.types import Report
from hetfl.updates import Update
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]


class Weighted(FederatedCallback):
    """Records the weights and updates of the last round."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, dict[str, torch.Tensor]]] = []
        self.totals: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.taken = []

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.taken.append((report.weight, index_layout(index).views(update.to_dense())))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.totals.append(sum(weight for weight, _ in self.taken))


def test_divfls_weights_are_used_in_the_mean_and_sum_to_the_number_of_clients(fit: Fit) -> None:
    noted, data = Weighted(), small_data(partitioner=IID(), num_clients=8)
    module = small_module(selection=DivFL(3), aggregator=SelectionMean(), levels=small_levels(1.0))
    before: dict[str, torch.Tensor] = {}

    class Before(FederatedCallback):
        def on_train_epoch_start(self, trainer: Trainer, _: LightningModule) -> None:
            before.update({name: p.detach().clone() for name, p in module.net.named_parameters()})

    fit(module, data, rounds=5, limit_val_batches=0, callbacks=[noted, Before()])
    assert noted.totals == pytest.approx([8.0] * 5)
    assert len({weight for weight, _ in noted.taken}) > 1
    for name, parameter in module.net.named_parameters():
        mean = sum(weight * views[name] for weight, views in noted.taken) / 8
        assert torch.allclose(parameter.detach(), before[name] + mean, atol=1e-6)


@pytest.mark.parametrize("policy", [SizeWeighted(3), PowerOfChoice(4, 3)])
def test_drawing_and_weighting_by_size_is_refused_at_start(fit: Fit, policy: Selection) -> None:
    for module in (small_module(FedAvg, selection=policy), small_module(selection=policy, aggregator=SampleMean())):
        with pytest.raises(ConfigurationError, match="size would count twice"):
            fit(module, rounds=1)
    fit(small_module(FedAvg, selection=policy, aggregator=HolderMean()), rounds=1, limit_val_batches=0)
    fit(small_module(HeteroFL, selection=policy), rounds=1, limit_val_batches=0)


def test_divfls_updates_can_be_stored_in_the_run_folder_and_old_files_are_deleted(fit: Fit, tmp_path: Path) -> None:
    module = small_module(selection=DivFL(3, updates=DiskStore()))
    last = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    options = {"limit_val_batches": 0, "enable_checkpointing": True, "callbacks": [last]}
    trainer = fit(module, small_data(num_clients=6), rounds=8, **options)
    files = list((Path(str(trainer.log_dir)) / "updates").iterdir())
    # One file for each client, and the files that the last two checkpoints may refer to; not all 24.
    assert 6 <= len(files) <= 12


def test_a_checkpoint_can_be_evaluated_with_another_policy(fit: Fit, tmp_path: Path) -> None:
    path, data = tmp_path / "one.ckpt", small_data(num_clients=6)
    fit(small_module(), data, rounds=1).save_checkpoint(path)
    for policy in (DivFL(3), PowerOfChoice(4, 3, "rpow")):
        module = small_module(selection=policy)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.test(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        assert "test/accuracy" in trainer.callback_metrics
