"""The terminal display: plain lines without a terminal, one live line in a terminal, and a final table."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hetfl.display.formats import format_quantity, format_seconds
from hetfl.display.progress import RoundProgress, is_milestone
from hetfl.display.summary import RunSummary, totals
from hetfl.federation import FederatedCallback
from hetfl.runs import RunFolder
from hetfl.runs.headline import ACCURACY
from hetfl.types import Level
from tests.headline_cases import MAE

CLIENTS = 3


class Federation(pl.LightningModule):
    """The attributes of a federated module that the display reads."""

    objective, executor = SimpleNamespace(headline=ACCURACY), SimpleNamespace(words="in a test")

    def __init__(self, fail_in_round: int | None = None) -> None:
        super().__init__()
        self.levels = {"a": Level("a"), "b": Level("b", width=0.5, depth=2)}
        self.layer = nn.Linear(40, 30)
        self._submodels = {"a": nn.Linear(40, 30), "b": nn.Linear(20, 15)}
        self._fail_in_round = fail_in_round

    def submodel(self, level: str) -> nn.Module:
        return self._submodels[level]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == self._fail_in_round:
            raise RuntimeError("a client failed")
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FederatedCallback):
                for done in range(1, CLIENTS + 1):
                    callback.on_client_end(self.trainer, self, done, CLIENTS)
        self.log("step", float(self.current_epoch), on_step=False, on_epoch=True)
        self.log("comm/up_bytes_total", torch.tensor(3_210_000.0, dtype=torch.float64), on_step=False, on_epoch=True)
        self.log("comm/up_ratio_total", 12.5, on_step=False, on_epoch=True)
        self.log("compute/flops_total", torch.tensor(2.5e12, dtype=torch.float64), on_step=False, on_epoch=True)
        loss: torch.Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("step", float(self.current_epoch))
        self.log_dict({"val/accuracy": 0.8125, "val/accuracy_by_level/a": 0.8125, "val/accuracy_by_level/b": 0.75})

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("step", float(self.current_epoch))
        self.log_dict({"test/accuracy": 0.5625, "test/accuracy_by_level/a": 0.5625, "test/accuracy_by_level/b": 0.5})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Regression(Federation):
    """A federation whose models are compared by an error."""

    objective = SimpleNamespace(headline=MAE)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"step": float(self.current_epoch), "val/mae": 123.456, "val/mae_by_level/a": 123.456})

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"step": float(self.current_epoch), "test/mae": 150.0})


class OneItem(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.ones(40)


LOADER = DataLoader(OneItem())


def trainer_with(callbacks: Sequence[pl.Callback], rounds: int, root: Path) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=rounds,
        callbacks=list(callbacks),
        logger=RunFolder(root=str(root)),
        accelerator="cpu",
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, RoundProgress) for callback in callbacks),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_plain_line_is_printed_every_tenth_of_the_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_with([RoundProgress()], 20, tmp_path)
    trainer.fit(Federation(), LOADER, LOADER)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    lines = [line for line in out.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == [f"{done}/20" for done in range(2, 21, 2)]
    assert all(re.search(r"\d  [\d.]+ s  left [\d.]+ s  val accuracy 81\.25 %$", s) for s in lines[:-1])
    assert re.search(r"20/20  [\d.]+ s  val accuracy 81\.25 %$", lines[-1])
    assert f"run folder: {trainer.log_dir}" in out.splitlines()


def test_a_run_that_stops_early_prints_a_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = pl.callbacks.EarlyStopping("val/accuracy", patience=2)
    trainer_with([RoundProgress(), stop], 100, tmp_path).fit(Federation(), LOADER, LOADER)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["3/100"]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_the_live_line_is_shown_only_in_a_capable_terminal(
    tmp_path: Path, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "160")
    trainer_with([RoundProgress()], 2, tmp_path).fit(Federation(), LOADER, LOADER)
    out = screen.getvalue()
    assert ("\x1b[2K" in out) == (term == "xterm")
    assert "round 1/2  0" in out
    assert "round 2/2  0" in out


def test_the_live_line_counts_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("rich._console", Console(file=io.StringIO()))  # made before there was a terminal
    clock = iter(range(1_000_000))
    monkeypatch.setattr("hetfl.display.progress.time.monotonic", lambda: float(next(clock)))  # every drawing is due
    trainer_with([RoundProgress()], 2, tmp_path).fit(Federation(), LOADER, LOADER)
    for round_shown in (1, 2):
        for done in range(1, CLIENTS + 1):
            assert f"round {round_shown}/2  clients {done}/{CLIENTS}" in screen.getvalue()
    assert screen.getvalue().endswith("\n")


def test_an_exception_restores_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress = RoundProgress()
    with pytest.raises(RuntimeError, match="a client failed"):
        trainer_with([progress], 3, tmp_path).fit(Federation(fail_in_round=1), LOADER, LOADER)
    assert sys.stdout is screen  # the live line had replaced it
    assert screen.getvalue().rfind("\x1b[?25h") > screen.getvalue().rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_disabled_progress_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = RoundProgress()
    progress.disable()
    trainer_with([progress], 2, tmp_path).fit(Federation(), LOADER, LOADER)
    assert "round" not in capsys.readouterr().out


def test_a_summary_is_printed_after_training_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Federation()
    trainer = trainer_with([RunSummary()], 2, tmp_path)
    trainer.fit(module, LOADER, LOADER)
    fitted = capsys.readouterr().out
    assert re.search(r"^a +1 +all +1,230 +81\.25 % +– *$", fitted, re.M)
    assert re.search(r"^b +0\.5 +2 +315 +75\.00 % +– *$", fitted, re.M)
    assert re.search(r"^global +81\.25 % +– *$", fitted, re.M)
    assert re.search(r"^uploaded +3\.21 MB$", fitted, re.MULTILINE)
    assert re.search(r"^compression +uploads of 12\.5× fewer bytes", fitted, re.MULTILINE)
    assert re.search(r"^computed +2\.50 TFLOP$", fitted, re.MULTILINE)
    assert re.search(r"^wall time +[\d.]+ s$", fitted, re.MULTILINE)
    assert re.search(rf"^run folder +{re.escape(str(trainer.log_dir))}$", fitted, re.MULTILINE)
    assert "downloaded" not in fitted  # it was not measured

    trainer.test(module, LOADER, verbose=False)
    tested = capsys.readouterr().out
    assert re.search(r"^a +1 +all +1,230 +81\.25 % +56\.25 % *$", tested, re.M)
    assert re.search(r"^b +0\.5 +2 +315 +75\.00 % +50\.00 % *$", tested, re.M)


def test_the_summary_shows_the_objectives_headline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Regression()
    trainer = trainer_with([RoundProgress(), RunSummary(after_fit=False)], 2, tmp_path)
    trainer.fit(module, LOADER, LOADER)
    assert capsys.readouterr().out.rstrip().endswith("  val mean absolute error 123.5")
    trainer.test(module, LOADER, verbose=False)
    shown = capsys.readouterr().out
    assert "…" not in shown  # the headings of scores have several lines
    assert all(re.search(rf" {word}[ a-z]*.* {word}", shown) for word in ("mean", "error"))
    assert re.search(r"^a .* +123\.5 +– *$", shown, re.M)
    assert re.search(r"^global +123\.5 +150\.0 *$", shown, re.M)
    assert re.search(r"^wall time +[\d.]+ s$", shown, re.MULTILINE)


def test_totals_are_read_from_the_contract_columns() -> None:
    metrics = {
        "local/accuracy_mean": 0.5,
        "local/accuracy_worst10": 0.25,
        "comm/up_bytes_total": 1e6,
        "comm/down_bytes_total": 2.5e9,
        "comm/up_ratio_total": 31.96,
        "compute/flops_total": 7e15,
        "sim/seconds_total": 3600.0,
    }
    assert {name: text.split(" (")[0] for name, text in totals(metrics, 75.0).items()} == {
        "local accuracy": "50.00 %",
        "worst tenth": "25.00 %",
        "uploaded": "1.00 MB",
        "downloaded": "2.50 GB",
        "compression": "uploads of 32.0× fewer bytes than dense float32 updates",
        "computed": "7.00 PFLOP",
        "simulated time": "1:00:00",
        "wall time": "0:01:15",
    }


@given(st.integers(1, 500))
def test_there_are_about_ten_milestones_including_the_last_round(total: int) -> None:
    milestones = [done for done in range(1, total + 1) if is_milestone(done, total)]
    assert len(milestones) == min(total, 10)
    assert milestones[-1] == total


def test_a_run_without_a_last_round_prints_a_line_every_ten_rounds() -> None:
    assert [done for done in range(1, 31) if is_milestone(done, None)] == [10, 20, 30]


@given(st.floats(0, 1e20))
def test_quantities_are_accurate_to_three_digits(value: float) -> None:
    number, unit = format_quantity(value, "B").split(" ")
    read = float(number) * 1000.0 ** ["B", "kB", "MB", "GB", "TB", "PB", "EB"].index(unit)
    assert read == pytest.approx(value, rel=0.0051, abs=0.5)
    assert len(number) <= 4


@given(st.floats(0, 1e6))
def test_formatted_seconds_parse_back_to_the_value(value: float) -> None:
    text = format_seconds(value)
    if value < 59.5:
        number, unit = text.split(" ")
        assert unit == "s"
        assert float(number) == pytest.approx(value, rel=0.0501)  # two digits
        assert "e" not in number
        return
    hours, minutes, seconds = map(int, text.split(":"))
    assert hours * 3600 + minutes * 60 + seconds == round(value)
    assert max(minutes, seconds) < 60


def test_other_ranks_show_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    trainer_with([RoundProgress(), RunSummary()], 2, tmp_path).fit(Federation(), LOADER, LOADER)
    assert capsys.readouterr().out == ""
