"""The bound that follows the norms of a level: values by hand, hostile clients in runs, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hetfl import FederatedModule, Level
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.hooks import Hook, MedianBound
from hetfl.local import LocalTraining
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.selection import Uniform
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]


def part(size: int) -> Part:
    return Part({"w": (slice(0, size),)})


def taken(bound: MedianBound, norm: float, size: int = 4, level: str = "a") -> float:
    """Return the norm of an update of some norm after the hook; NaN if it is refused."""
    update = DenseUpdate(torch.full((size,), norm / math.sqrt(size), dtype=torch.float64))
    try:
        return float(bound.on_update(update, part(size), Report(1, level, 3, 0.5)).to_dense().norm())
    except RefusedUpdate:
        return math.nan


def test_bounds_have_their_values_by_hand() -> None:
    bound = MedianBound(factor=2.0, action="clip", window=3, enough=2, first=0.5)
    bound.setup(Facts(parameters={"w": torch.tensor([3.0, 4.0])}))
    assert taken(bound, 100.0) == pytest.approx(2.5)  # half of the model's norm; 100 / 2 is remembered
    assert taken(bound, 1.0) == pytest.approx(1.0)
    assert taken(bound, 160.0) == pytest.approx(2 * 25.25 * 2)  # the median of 50 and 0.5, per root of four entries
    assert taken(bound, 1.0) == pytest.approx(1.0)
    assert taken(bound, 4.0) == pytest.approx(2 * 0.5 * 2)  # the last three: 0.5, 80, 0.5
    assert taken(bound, 90.0, size=16, level="b") == pytest.approx(2 * 2.0 * 4)  # of all levels: 80, 0.5, 2
    begun = MedianBound(first=0.25)
    begun.setup(Facts(parameters={"w": torch.zeros(9, 4), "b": torch.zeros(28)}))
    assert taken(begun, 100.0) == pytest.approx(0.25 * 8)  # a model of 64 zeros


def test_a_bound_follows_longer_updates_after_half_a_window() -> None:
    bound = MedianBound(factor=3.0, window=10, enough=5, first=1.0)
    bound.setup(Facts(parameters={"w": torch.tensor([1.0])}))
    assert all(taken(bound, 0.5) == pytest.approx(0.5) for _ in range(10))
    assert [math.isnan(taken(bound, 50.0)) for _ in range(8)] == [True] * 5 + [False] * 3


class Hostile(Hook):
    """Two of twelve clients multiply their vectors."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_delta(self, p_D: torch.Tensor, ctx: Any) -> torch.Tensor:
        return p_D * self.factor if ctx.client in (3, 7) else p_D


def accuracy(fit: Fit, name: str, hooks: list[Hook]) -> tuple[float, pd.DataFrame]:
    module = small_module(
        hooks=hooks,
        selection=Uniform(12),
        levels={"a": Level("a")},
        local=LocalTraining(2, 10, 1.0, lambda p: SGD(p, 0.1, 0.9)),
    )
    trainer = fit(module, small_data(), rounds=12, name=name, check_val_every_n_epoch=12)
    rows = pd.read_csv(Path(str(trainer.log_dir), "metrics.csv"))
    return float(rows["val/accuracy"].iloc[-1]), rows


@pytest.mark.filterwarnings("ignore:.*the median update's largest one.*", "ignore:.*refused.*")
def test_two_of_twelve_hostile_clients_do_not_ruin_the_model(fit: Fit) -> None:
    honest, _ = accuracy(fit, "honest", [])
    ruined, _ = accuracy(fit, "ruined", [Hostile(-5.0)])
    assert honest > 0.8
    assert ruined < honest - 0.3
    for factor in (-5.0, 1e15):
        bounded, rows = accuracy(fit, f"bounded{factor}", [Hostile(factor), MedianBound()])
        assert bounded > honest - 0.12, factor
        assert (rows["defence/refused"] + rows["defence/clipped"] >= 2).all()
        assert (rows["defence/refused"][1:] >= 2).all()
        assert (rows["defence/refused"] == rows["comm/refused"]).all()  # what is clipped at first is not refused


@pytest.mark.filterwarnings("ignore:.*refused.*", "ignore:.*the median update's largest one.*")
@pytest.mark.parametrize("cohort", [1, 6])
def test_rounds_of_which_all_updates_are_refused_do_not_end_the_run(fit: Fit, cohort: int) -> None:
    """The learning rate grows a hundredfold, twice."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda round: 100.0 ** (round // 3 - 2))

    local = LocalTraining(1, 20, 1.0, lambda p: SGD(p, 0.1), scheduler=schedule)
    module = small_module(
        hooks=[MedianBound(enough=2)], selection=Uniform(cohort), levels={"a": Level("a")}, local=local
    )
    trainer = fit(module, rounds=8, name="leaps", limit_val_batches=0)
    rows = pd.read_csv(Path(str(trainer.log_dir), "metrics.csv"))
    assert rows["step"].tolist() == list(range(8))
    assert (rows["defence/refused"][3:5] == cohort).any()


@pytest.mark.filterwarnings("ignore:.*refused.*")
def test_a_resumed_run_has_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    def module() -> FederatedModule:
        return small_module(hooks=[Hostile(10.0), MedianBound(enough=3)], selection=Uniform(6))

    whole, first, second = module(), module(), module()
    fit(whole, rounds=4, name="whole", limit_val_batches=0)
    fit(first, rounds=2, name="begun", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, rounds=4, name="resumed", limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="factor above 1, .* for MedianBound but got 1.0, 0.1, 5, 50"):
        MedianBound(factor=1.0)
    with pytest.raises(ConfigurationError, match="enough <= window for MedianBound but got 3.0, 0.1, 9, 5"):
        MedianBound(window=5, enough=9)
