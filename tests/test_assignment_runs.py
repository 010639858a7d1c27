"""Federations whose levels a bandit chooses: its draws, lost clients, checkpoints, evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch import LightningModule

from hetfl import FederatedModule
from hetfl.aggregators import QFedAvg
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedCallback
from hetfl.fleet import EUCB, DiscountedUCB, LearningAssignment, OneForAll
from hetfl.layout import Index
from hetfl.selection import Uniform
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value import LossDrop
from tests.bandit_cases import PlainBandit, plain_rewards
from tests.conftest import small_data, small_levels, small_module
from tests.fleet_cases import Ends, rows, varied

Fit = Callable[..., Trainer]
DEADLINE = 8.0


class Reports(FederatedCallback):
    """Keeps the reports of each round."""

    def __init__(self) -> None:
        self.rounds: list[list[Report]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rounds.append([])

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.rounds[-1].append(report)


def learning(assignment: LearningAssignment, **changes: Any) -> FederatedModule:
    """Return a module with clients that are late or fail."""
    settings = {"fleet": varied(failure_rate=0.2), "deadline": DEADLINE, "selection": Uniform(8)}
    return small_module(assignment=assignment, **{**settings, **changes})


def table_of(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "assignment.csv")


@pytest.mark.parametrize("since", ["report", "start"])
def test_a_run_draws_what_a_plain_bandit_draws_from_its_reports(fit: Fit, since: Any) -> None:
    """Late clients are booked with the deadline, failed ones are not; values are falls of the reported losses."""
    aggregator = {"aggregator": QFedAvg(1.0)} if since == "start" else {}
    module = learning(DiscountedUCB(0.9, 0.3, value=LossDrop(since)), **aggregator)
    module.ends = ends = Ends()  # type: ignore[assignment]
    reports = Reports()
    trainer = fit(module, rounds=8, limit_val_batches=0, callbacks=[reports])
    table, seconds_LN = table_of(trainer), module.forecast.table()
    fastest = seconds_LN[0].min()
    plain = [
        PlainBandit(next((level for level in range(3) if column[level] <= fastest), 2), 3, 0.9, 0.3)
        for column in seconds_LN.T
    ]
    last: dict[int, float] = {}
    scale, booked = 0.0, 0
    for round, of_round in enumerate(reports.rounds):
        drawn = [bandit.draw() for bandit in plain]
        assert all(report.level == module.assignment.names[drawn[report.client]] for report in of_round)
        drops = {
            report.client: (last.get(report.client, math.nan) if since == "report" else report.initial_loss or 0.0)
            - report.loss
            for report in of_round
        }
        known = [drop for drop in drops.values() if not math.isnan(drop)]
        scale = max([0.95 * scale, *known])
        shares = [max(drop, 0.0) / (scale or 1.0) for drop in known]
        unknown = sum(shares) / len(shares) if shares else 1.0
        values = {k: unknown if math.isnan(drop) else max(drop, 0.0) / (scale or 1.0) for k, drop in drops.items()}
        times = {report.client: report.seconds for report in of_round}
        for (of, client), late in ends.missed.items():
            if of == round and late:
                times[client], values[client] = DEADLINE, 0.0
        clients = sorted(times)
        earned = plain_rewards([times[k] for k in clients], [values[k] for k in clients], 1.0)
        here = table[table["round"] == round]
        assert here["client"].tolist() == clients
        assert here["reward"].tolist() == pytest.approx(earned, rel=1e-9)
        for client, reward in zip(clients, earned, strict=True):
            plain[client].credit(drawn[client], reward)
        booked += len(clients)
        last |= {report.client: report.loss for report in of_round}
    assert booked == len(table)
    assert min(table["late"].sum(), sum(not late for late in ends.missed.values())) > 2


def test_the_columns_and_the_table_of_a_run(fit: Fit) -> None:
    module = learning(EUCB())
    trainer = fit(module, rounds=4, limit_val_batches=0)
    metrics, table = rows(trainer), table_of(trainer)
    share = {level: size / module.levels.sizes["a"] for level, size in module.levels.sizes.items()}
    for round, here in table.groupby("round"):
        assert metrics["assignment/mean_share"][round] == pytest.approx(here["level"].map(share).mean())
        gap = (here["seconds"] / here["seconds"].mean() - 1).abs().mean()
        assert metrics["assignment/mean_gap"][round] == pytest.approx(gap)
    assert set(table["device"]) == {"device"}
    assert (table[table["late"] == 1]["seconds"] == DEADLINE).all()


@pytest.mark.parametrize("kind", [DiscountedUCB, EUCB])
def test_a_resumed_run_ends_with_the_same_bits(
    fit: Fit, tmp_path: Path, kind: Callable[[], LearningAssignment]
) -> None:
    whole, half, again = (learning(kind()) for _ in range(3))
    straight = fit(whole, rounds=8, name="whole", limit_val_batches=0)
    fit(half, rounds=4, name="half", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(again, rounds=8, name="again", ckpt=str(tmp_path / "half.ckpt"), limit_val_batches=0)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())
    pd.testing.assert_frame_equal(rows(straight)[4:].reset_index(drop=True), rows(resumed), check_exact=True)
    pd.testing.assert_frame_equal(table_of(straight), table_of(resumed), check_exact=True)
    assert table_of(straight)["level"].nunique() > 1


def test_a_run_is_not_resumed_with_another_discount(fit: Fit, tmp_path: Path) -> None:
    fit(learning(DiscountedUCB(0.98)), rounds=1, limit_val_batches=0).save_checkpoint(tmp_path / "one.ckpt")
    for other in (DiscountedUCB(0.9), DiscountedUCB(0.98, value=LossDrop("start")), EUCB(0.98)):
        with pytest.raises(ConfigurationError, match="Expected the checkpoint's assignment"):
            fit(learning(other), rounds=2, ckpt=str(tmp_path / "one.ckpt"), limit_val_batches=0)


def test_an_evaluation_of_a_checkpoint_has_the_levels_of_its_last_round(fit: Fit, tmp_path: Path) -> None:
    module = learning(DiscountedUCB())
    trainer = fit(module, rounds=3, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    trainer.test(module, datamodule=small_data(), verbose=False)
    levels = pd.read_csv(Path(str(trainer.log_dir)) / "clients.csv")["level"].tolist()
    assert levels == module.assignment.levels(2)
    for path in ("three.ckpt", "weights.ckpt"):
        other = learning(DiscountedUCB())
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
        tester = Trainer(**quiet, enable_model_summary=False)
        tester.test(other, datamodule=small_data(), ckpt_path=str(tmp_path / path), verbose=False, weights_only=True)
        assert other.assignment.levels(2) == levels
        fewer = learning(DiscountedUCB())
        data = small_data(num_clients=9)
        tester.test(fewer, datamodule=data, ckpt_path=str(tmp_path / path), verbose=False, weights_only=True)
        assert fewer.assignment.levels(2) == learning_anew(fewer)


def learning_anew(module: FederatedModule) -> list[str]:
    """Return the levels of clients that nothing is known of: those of equal time, or the fastest."""
    ordered_LN = module.forecast.table()
    fits = ordered_LN <= ordered_LN[0].min()
    return ["abc"[level] for level in np.where(fits.any(0), fits.argmax(0), ordered_LN.argmin(0))]


def test_levels_that_give_equal_nets_are_refused(fit: Fit) -> None:
    module = small_module(assignment=DiscountedUCB(), levels=small_levels(1.0, 0.5, 0.49))
    with pytest.raises(ConfigurationError, match="levels of different sizes for DiscountedUCB but got b and c"):
        fit(module, rounds=1)


def test_a_run_with_one_level_for_all_trains_one_level_per_round(fit: Fit) -> None:
    module, reports = small_module(assignment=OneForAll()), Reports()
    fit(module, rounds=6, limit_val_batches=0, callbacks=[reports])
    levels = [{report.level for report in of_round} for of_round in reports.rounds]
    assert {len(each) for each in levels} == {1}
    assert len(set().union(*levels)) > 1
