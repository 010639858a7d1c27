"""The benchmark of a GPU: its checks run on the CPU and on a card that is not there, its tables without a GPU."""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path

import gpu
import pytest
import torch
from gpu import GRAPHS, cohort_rounds, main, print_waits, synchronisations, verdict
from gpu_checks import AGGREGATORS, COMPRESSORS, EXECUTORS, SMALL, Check, checks
from rich.console import Console
from timing import Row

from hetfl import aggregators, compression
from tests.fake_cuda import fake_card


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.local.auto.probe.PATIENCE", 1e-3)


def test_the_checks_run_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--json", str(tmp_path / "gpu.json")]) == 0
    assert "Stacked" in capsys.readouterr().out
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {check["kind"] for check in written["checks"]} == {"executor", "compressor", "aggregator"}
    assert all(check["difference"] <= 1e-8 for check in written["checks"])


def test_the_checks_of_the_card_run_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All compressors and aggregators have their own tests on this card, and Auto has one."""
    for cases, kept in ((AGGREGATORS, {"SampleMean"}), (COMPRESSORS, {"TopK"}), (EXECUTORS, {"Sequential", "Stacked"})):
        for name in cases.keys() - kept:
            monkeypatch.delitem(cases, name)
    with fake_card():
        results = checks("cuda")
    assert [check.name for check in results] == ["Sequential", "Stacked", "TopK", "SampleMean"]
    assert all(check.passed for check in results)


def test_a_difference_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [Check("executor", "Sequential", difference) for difference in (1e-7, torch.nan)]
    monkeypatch.setattr(gpu, "checks", lambda device: wrong)
    assert main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out.count("DIFFERS") == 2


def test_every_compressor_and_every_aggregator_is_checked() -> None:
    for package, cases in ((compression, COMPRESSORS), (aggregators, AGGREGATORS)):
        base = compression.Compressor if package is compression else aggregators.Aggregator
        members = [getattr(package, name) for name in package.__all__]
        classes = {each for each in members if inspect.isclass(each) and issubclass(each, base)}
        assert {type(make()) for make in cases.values()} == {each for each in classes if not inspect.isabstract(each)}


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "Expected a GPU that torch can use but got none: --device cpu runs the checks alone"


def test_executors_are_timed_beside_the_plain_loop_with_equal_deltas() -> None:
    measured = cohort_rounds(replace(SMALL, levels="d"), "cpu", blocks=1)
    assert [row.side for row in measured] == ["plain loop", "Sequential", "Stacked(16)", "Stacked(100)", "Auto(100)"]


def test_the_fastest_executor_is_compared_with_the_goal() -> None:
    measured = [Row("", name, [seconds], [1.0]) for name, seconds in (("plain loop", 1.0), ("x", 0.04), ("y", 0.5))]
    assert verdict("d", measured).startswith("Level d: x is 25.0 times as fast")
    assert verdict("d", measured).endswith("the goal of 20 is met.")
    assert verdict("d", [measured[0], measured[2]]).endswith("is missed.")
    assert "no executor" in GRAPHS


def test_synchronisations_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with synchronisations() as counts:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert dict(counts) == {"outside of the package": 3}
    assert modes == ["warn", 0]
    console = Console(file=StringIO(), width=140)
    print_waits({"1 epoch": {"hetfl/a.py:1 f": 2}, "2 epochs": {}}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "hetfl/a.py:1 f" in text
