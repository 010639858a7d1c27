"""A user's stateful piece needs one class and one constructor argument; its lifecycle is automatic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from hetfl import FedAvg, FederatedModule
from hetfl.aggregators import HolderMean
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.local import Sequential
from hetfl.local.executor import Job, Result
from hetfl.piece import Facts, Piece, declared_extras
from hetfl.selection import Uniform
from hetfl.types import Range, Report, Task
from hetfl.updates import Update
from tests.conftest import small_levels, small_module

Fit = Callable[..., Trainer]


class MeanUpdate(Piece):
    """Logs the moving average of the updates' norms.

    Args:
        rate: weight of the previous average.
    """

    def __init__(self, rate: float = 0.5) -> None:
        self.rate, self.average, self.calls = rate, 0.0, list[str]()

    def setup(self, facts: Facts) -> None:
        self.calls.append(f"setup {facts.num_clients} {facts.rounds}")

    def begin(self) -> None:
        self.calls.append("begin")

    def begin_round(self, round: int, lr: float) -> None:
        self.calls.append(f"begin round {round}")

    def observe(self, update: Update, index: Index, report: Report) -> None:
        self.average = self.rate * self.average + (1 - self.rate) * float(update.to_dense().norm())

    def end_round(self, round: int) -> None:
        self.calls.append(f"end round {round}")

    def columns(self) -> dict[str, float]:
        return {"update/mean_norm": self.average}

    def state_dict(self) -> dict[str, Any]:
        self.calls.append("save")
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append("load")
        self.average = state["average"]


class Watched(FedAvg):
    """FedAvg with an additional piece, which is an attribute."""

    def __init__(self, *args: Any, watcher: Piece, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watcher = watcher


class SlowMean(HolderMean):
    """A stateful aggregator: it returns the mean of this round's step and its last returned step."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Tensor] = {}

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        steps, holders = super().compute()
        slow = {name: 0.5 * (step + self.last.get(name, torch.zeros_like(step))) for name, step in steps.items()}
        self.last = {name: step.clone() for name, step in slow.items()}
        return slow, holders

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]


def watched(rate: float = 0.5) -> FederatedModule:
    return small_module(Watched, levels=small_levels(1.0), watcher=MeanUpdate(rate))


def slow() -> FederatedModule:
    return small_module(aggregator=SlowMean())


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


@pytest.mark.parametrize("make", [watched, slow])
def test_state_of_a_users_piece_resumes_with_the_same_bits(
    fit: Fit, tmp_path: Path, make: Callable[[], FederatedModule]
) -> None:
    whole, first, second = make(), make(), make()
    straight = fit(whole, rounds=4, name="whole")
    fit(first, rounds=2, name="first").save_checkpoint(tmp_path / "half.ckpt")
    again = fit(second, rounds=4, name="second", ckpt=str(tmp_path / "half.ckpt"))
    weights: Mapping[str, Tensor] = whole.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.state_dict().items())
    pd.testing.assert_frame_equal(rows(straight)[2:].reset_index(drop=True), rows(again), check_exact=True)


def test_the_methods_of_a_piece_are_called_in_order(fit: Fit, tmp_path: Path) -> None:
    first, second = watched(), watched()
    trainer = fit(first, rounds=1, limit_val_batches=0)
    assert first.pieces["watcher"].calls == ["setup 12 1", "begin", "begin round 0", "end round 0"]  # type: ignore[attr-defined]
    assert rows(trainer)["update/mean_norm"][0] > 0
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    fit(second, rounds=2, name="second", ckpt=str(tmp_path / "one.ckpt"), limit_val_batches=0)
    expected = ["setup 12 2", "load", "begin", "begin round 1", "end round 1"]
    assert second.pieces["watcher"].calls == expected  # type: ignore[attr-defined]


def test_settings_are_part_of_the_fingerprint(fit: Fit, tmp_path: Path) -> None:
    fit(watched(0.5), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    message = r"checkpoint's watcher \(MeanUpdate\(rate=0.5\)\) but got MeanUpdate\(rate=0.25\)"
    with pytest.raises(ConfigurationError, match=message):
        fit(watched(0.25), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))
    fit(small_module(levels=small_levels(1.0)), rounds=1, name="plain").save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ConfigurationError, match=r"none of \['watcher'\]"):
        fit(watched(), rounds=2, name="last", ckpt=str(tmp_path / "plain.ckpt"))


def test_an_evaluation_loads_only_the_pieces_that_it_needs(fit: Fit, tmp_path: Path) -> None:
    trainer = fit(watched(), rounds=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = watched()
    trainer.test(module, datamodule=trainer.datamodule, ckpt_path=str(tmp_path / "one.ckpt"), verbose=False)  # type: ignore[attr-defined]
    assert module.pieces["watcher"].calls == ["setup 12 None"]  # type: ignore[attr-defined]
    assert module.ledger.total.up_bytes > 0


class Hardness(Piece):
    """Reads an additional number of each report."""

    def __init__(self) -> None:
        self.read: dict[int, float] = {}

    def extras(self) -> dict[str, Range]:
        return {"hardness": Range(0, 10, "for a hardness")}

    def observe(self, update: Update, index: Index, report: Report) -> None:
        self.read[report.client] = report.extras["hardness"]


class Measured(Sequential):
    """Reports the client's number as its hardness; client 9 adds an undeclared extra, client 7 reports none."""

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:
        return [self._measured(result) for result in super().work(job, tasks)]

    def _measured(self, result: Result) -> Result:
        client = result.report.client
        extras = {"hardness": float(client), **({"shape": 1.0} if client == 9 else {})} if client != 7 else {}
        return replace(result, report=replace(result.report, extras=extras))


def test_only_declared_extras_of_a_report_are_accepted(fit: Fit) -> None:
    piece = Hardness()
    module = small_module(Watched, levels=small_levels(1.0), watcher=piece, executor=Measured(), selection=Uniform(12))
    with warnings.catch_warnings(record=True) as warnings_given:
        warnings.simplefilter("always")
        fit(module, rounds=1)
    messages = "\n".join(str(each.message) for each in warnings_given)
    assert "Expected from 0 to 10 for a hardness but got 11" in messages
    assert piece.read == {client: float(client) for client in range(11) if client not in (7, 9)}
    assert r"Expected extras ['hardness'] but got []" in messages
    assert r"Expected extras ['hardness'] but got ['hardness', 'shape']" in messages


def test_two_pieces_must_declare_the_same_range_for_an_extra() -> None:
    other = MeanUpdate()
    other.extras = lambda: {"hardness": Range(0, 1, "for a hardness")}  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="range of extra hardness but MeanUpdate declares from 0 to 1"):
        declared_extras([Hardness(), other])
