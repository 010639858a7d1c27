"""Budgets in whole runs: met with levels and clusters, kept by a resumed run, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Callback, Trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from hetfl.analysis import draw_budget, load_run, plot_budget
from hetfl.clustering import IFCA
from hetfl.compression import Chain, ErrorFeedback, GammaFedHT, HardThreshold, LogQuantizer
from hetfl.display.summary import totals
from hetfl.errors import ConfigurationError
from hetfl.local import LocalTraining
from tests.conftest import small_levels, small_module

ROUNDS = 12


def module(compressor: Any, **changes: Any) -> Any:
    """Return HeteroFL over five levels, whose learning rate falls to a hundredth."""
    local = LocalTraining(
        1, 20, 1.0, lambda p: SGD(p, 0.1, 0.9), scheduler=lambda o: CosineAnnealingLR(o, ROUNDS, 0.001)
    )
    settings = {"levels": small_levels(1, 0.5, 0.25, 0.125, 0.0625), "local": local, "statistics_clients": 1}
    return small_module(**{**settings, **changes}, uplink=ErrorFeedback(compressor))


class StopAfter(Callback):
    """Stops a run after some rounds and leaves a checkpoint."""

    def __init__(self, rounds: int, path: Path) -> None:
        self.rounds, self.path = rounds, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
        if trainer.current_epoch + 1 == self.rounds:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def folder_of(trainer: Trainer) -> Path:
    return Path(trainer.logger.save_dir)  # type: ignore[union-attr,arg-type]


def table_of(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(folder_of(trainer) / "metrics.csv")


@pytest.mark.parametrize(
    ("make", "changes", "within"),
    [
        (lambda: HardThreshold(budget=30_000), {}, 0.02),
        (lambda: Chain(GammaFedHT(budget=8_000), LogQuantizer(3)), {"clustering": IFCA(2)}, 0.05),
    ],
    ids=["five levels", "codes and clusters"],
)
def test_a_run_spends_its_budget(fit: Any, make: Any, changes: dict[str, Any], within: float) -> None:
    built = module(make(), **changes)
    trainer = fit(built, rounds=ROUNDS, limit_val_batches=0)
    metrics = table_of(trainer)
    last = metrics.iloc[-1]
    assert last["budget/spent_bytes"] == built.ledger.total.update_bytes
    assert last["budget/spent_bytes"] == pytest.approx(last["budget/planned_bytes"], rel=within)
    densities = metrics.filter(like="budget/density_by_level/")
    assert densities.shape[1] > 2
    assert "spent of" in totals({str(name): float(value) for name, value in last.items()}, 1.0)["upload budget"]

    run = load_run(folder_of(trainer))
    figure = plot_budget(run)
    (spent,) = (line for line in figure.axes[0].lines if line.get_label() == "spent")
    assert np.asarray(spent.get_ydata()) * 1e6 == pytest.approx(metrics["budget/spent_bytes"].to_numpy())
    assert [path.name for path in draw_budget(folder_of(trainer))] == ["budget.png", "budget.svg"]


def test_a_run_without_a_budget_has_no_picture_of_one(fit: Any) -> None:
    folder = folder_of(fit(module(HardThreshold(0.1)), rounds=1, limit_val_batches=0))
    assert draw_budget(folder) == []
    with pytest.raises(ConfigurationError, match="columns of a budget"):
        plot_budget(load_run(folder))


def test_a_run_that_was_stopped_and_resumed_spends_alike(fit: Any, tmp_path: Path) -> None:
    def made() -> Any:
        return module(Chain(GammaFedHT(budget=20_000), LogQuantizer(3)))

    whole, rest = made(), made()
    straight = fit(whole, rounds=6, name="whole", limit_val_batches=0)
    stop = StopAfter(3, tmp_path / "half.ckpt")
    parts = fit(made(), rounds=6, name="parts", limit_val_batches=0, callbacks=[stop])
    logger = parts.logger
    fit(rest, rounds=6, limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"), logger=logger)
    for one, two in zip(whole.net.parameters(), rest.net.parameters(), strict=True):
        assert torch.equal(one, two)
    pd.testing.assert_frame_equal(table_of(straight), table_of(parts), check_exact=True)


def test_a_report_out_of_range_is_refused(fit: Any) -> None:
    class Liar(HardThreshold):
        def report(self, delta_D: torch.Tensor) -> dict[str, float]:
            norms = super().report(delta_D)
            return norms if delta_D.numel() > 600 else dict.fromkeys(norms, -1.0)

    built = module(Liar(budget=30_000))
    with pytest.warns(UserWarning, match=r"refused: Expected from 0 to .* for the 1-norm of a delta but got -1"):
        fit(built, rounds=2, limit_val_batches=0)
    assert built.ledger.total.refused > 0


def test_a_run_that_has_spent_its_budget_gets_no_further_rounds(fit: Any, tmp_path: Path) -> None:
    path = tmp_path / "done.ckpt"
    fit(module(HardThreshold(budget=4_000)), rounds=4, name="done", limit_val_batches=0).save_checkpoint(path)
    with pytest.raises(
        ConfigurationError, match=r"more than \d+ bytes, which are spent, for rounds 5 to 8 but got 4000"
    ):
        fit(module(HardThreshold(budget=4_000)), rounds=8, ckpt=str(path), limit_val_batches=0)


def test_a_second_fit_plans_with_the_rates_of_a_schedule_that_begins_again(fit: Any) -> None:
    built = module(HardThreshold(budget=0.1))
    rates = built.local.learning_rates(3)
    for name in ("first", "second"):
        trainer = fit(built, rounds=3, name=name, limit_val_batches=0)
    assert built.uplink.compressor._control._lrs == rates + rates
    assert table_of(trainer)["lr"].tolist()[-3:] == pytest.approx(rates)
