"""Levels that grow: by schedule, on plateaus against a plain loop, in a run and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from hetfl.errors import ConfigurationError
from hetfl.fleet import Growing, GrowingOnPlateau, SelfPruned
from hetfl.piece import Facts
from hetfl.types import Report
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
FACTS = Facts((9,) * 6, 0, ("a", "b", "c"))


def test_a_schedule_moves_all_clients_up() -> None:
    assignment = Growing([2, 5])
    assignment.setup(FACTS)
    expected = {0: "aabbcc", 1: "aabbcc", 2: "aaaabb", 4: "aaaabb", 5: "aaaaaa", 9: "aaaaaa"}
    assert {round: "".join(assignment.levels(round)) for round in expected} == expected


def test_plateaus_equal_a_plain_loop() -> None:
    patience, least = 2, 0.1
    assignment, random = GrowingOnPlateau(patience, least), np.random.default_rng(3)
    assignment.setup(FACTS)
    best, flat, level = [np.inf] * 6, [0] * 6, [0, 0, 1, 1, 2, 2]
    moves = 0
    for round in range(40):
        assignment.begin_round(round, 0.1)
        assert assignment.positions(round).tolist() == level
        for client in random.choice(6, 3, replace=False).tolist():
            loss = float(random.uniform(0.5, 1.5))
            assignment.observe(None, None, Report(client, "a", 9, loss))  # type: ignore[arg-type]
            flat[client] = flat[client] + 1 if loss > (1 - least) * best[client] else 0
            best[client] = min(best[client], loss)
            if flat[client] == patience:
                moves += level[client] > 0
                level[client], flat[client], best[client] = max(level[client] - 1, 0), 0, np.inf
        assert assignment.columns()["assignment/levels_up"] == pytest.approx((6 - sum(level)) / 6)
    assert moves >= 4


def test_the_levels_of_a_round_stay_until_the_next_one_begins() -> None:
    assignment = GrowingOnPlateau(1, 0.0)
    assignment.setup(FACTS)
    assignment.begin_round(0, 0.1)
    for loss in (1.0, 2.0):
        assignment.observe(None, None, Report(5, "c", 9, loss))  # type: ignore[arg-type]
    again = GrowingOnPlateau(1, 0.0)
    again.setup(FACTS)
    again.load_state_dict(assignment.state_dict())
    for each in (assignment, again):
        assert each.level(5, 0) == "c"
        each.begin_round(1, 0.1)
        assert each.level(5, 1) == "b"


def test_a_resumed_run_has_the_same_levels_and_bits(fit: Fit, tmp_path: Path) -> None:
    def module() -> Any:
        return small_module(levels=small_levels(1.0, 0.5, 0.25), assignment=GrowingOnPlateau(1, 0.2))

    whole, first, again = module(), module(), module()
    trainer = fit(whole, rounds=6, name="whole")
    fit(first, rounds=3, name="first").save_checkpoint(tmp_path / "three.ckpt")
    resumed = fit(again, rounds=6, name="again", ckpt=str(tmp_path / "three.ckpt"))
    assert float(trainer.callback_metrics["assignment/levels_up"]) > 0
    for name, column in trainer.callback_metrics.items():
        assert torch.equal(column, resumed.callback_metrics[name]), name
    for p, q in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", [GrowingOnPlateau, SelfPruned])
def test_clients_of_other_data_begin_without_steps(make: Callable[[], Any]) -> None:
    assignment, other, fresh = make(), make(), make()
    assignment.setup(FACTS)
    assignment.begin_round(3, 0.1)
    assignment.steps += 1
    for each in (other, fresh):
        each.setup(Facts((9,) * 9, 0, FACTS.levels))
    other.load_state_dict(assignment.state_dict())
    assert other.levels(3) == fresh.levels(3) == list("aaabbbccc")
    assert other.columns() == fresh.columns()
    other.observe(None, None, Report(8, "c", 9, 1.0, extras={"tail_change": 0.0}))


def test_a_checkpoint_is_evaluated_on_data_of_other_clients(fit: Fit, tmp_path: Path) -> None:
    def module() -> Any:
        return small_module(levels=small_levels(1.0, 0.5, 0.25), assignment=GrowingOnPlateau(1, 0.2))

    fit(module(), rounds=2, limit_val_batches=0).save_checkpoint(tmp_path / "two.ckpt")
    tester = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_model_summary=False)
    for clients in (9, 15):
        data, path = small_data(num_clients=clients), str(tmp_path / "two.ckpt")
        (columns,) = tester.test(module(), datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        assert "test/accuracy" in columns


def test_wrong_settings_are_refused() -> None:
    for rounds in ([0], [3, 3], [5, 2]):
        with pytest.raises(ConfigurationError, match="Expected rising rounds of at least 1 for Growing but got"):
            Growing(rounds)
    for patience, least in ((0, 0.1), (1, 1.0), (1, -0.1)):
        with pytest.raises(ConfigurationError, match=r"patience of at least 1 and least in \[0, 1\) for GrowingOn"):
            GrowingOnPlateau(patience, least)
