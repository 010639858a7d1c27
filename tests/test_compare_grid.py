"""Sweeps: ``hetfl compare --grid``, its names, its columns, and the columns of the report."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from hetfl.analysis import Run
from hetfl.cli import main
from hetfl.compare.grid import parse_grid, seeds_of, spread_out
from hetfl.compare.main import _arguments, _print_results
from hetfl.compare.plan import Contender, PlannedRun
from hetfl.errors import ConfigurationError
from hetfl.report.groups import Group, swept_settings
from hetfl.runs.headline import ACCURACY
from tests.demo_cases import DEMO, FEW, refused

WIDTH = ["compare", "-r", f"w={DEMO[1]}", *FEW, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_grid_is_every_combination_with_its_values_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--grid", "model.levels.b.width=0.5,0.25", "--grid", "seed=0,1", "--grid", "data.seed=7"]
    main([*WIDTH, *grid, "--out=out", "--dry_run"])
    names = [f"w,b.width={width},data.seed=7" for width in ("0.5", "0.25")]
    plan = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("w,")]
    assert plan == [[name, seed] for name in names for seed in ("0", "1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "model.levels.b.width"], "Expected --grid KEY=VALUE,VALUE but got 'model.levels.b.width'"),
        (["--grid", "seed=0,0"], "every key and value once in --grid but got 'seed=0,0'"),
        (["--grid", "seed=0", "--seeds", "1"], "Expected seeds once but got --seeds and seed"),
        (["--grid", "model.levls=1,2"], "run w,model.levls=1: "),
    ],
)
def test_a_wrong_grid_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, [*WIDTH, *options, "--out=out"])


def test_values_that_are_lists_or_classes_give_short_names() -> None:
    grid = parse_grid(["model.net.hidden=[4,8],[8, 16]", "model.uplink.compressor=hetfl.compression.SignEF"])
    assert seeds_of(grid, None) == ["0"]
    made = spread_out([Contender("w", ("demo",))], grid)
    assert [each.name for each in made] == [f"w,net.hidden={h},uplink.compressor=SignEF" for h in ("4_8", "8_16")]
    overriding = ["--model.net.hidden=[8, 16]", "--model.uplink.compressor=hetfl.compression.SignEF"]
    assert _arguments(made[1], ["--x=1"]) == ["-c", "demo", "--x=1", *overriding]


def test_too_many_combinations_are_refused_before_they_are_made() -> None:
    grid = {letter: tuple(map(str, range(200))) for letter in "ab"}
    tracemalloc.start()
    with pytest.raises(ConfigurationError, match="at most 1000 configurations in a grid but got 80000$"):
        spread_out([Contender("w", ("demo",)), Contender("x", ("demo",))], grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("slow.csv,fast.csv", ["slow.csv", "fast.csv"]),
        ("slow.csv", ["slow.csv"]),
        ("mine.Net,other.Net", ["mine.Net", "other.Net"]),
        ("mine.Net,other.Mlp", ["Net", "Mlp"]),
        ("[4,8],4_8", ["4_8-1", "4_8-2"]),
    ],
)
def test_every_value_of_a_key_has_a_name_of_its_own(values: str, names: list[str]) -> None:
    made = spread_out([Contender("w", ("demo",))], parse_grid([f"model.net={values}"]))
    assert [each.name for each in made] == [f"w,model.net={name}" for name in names]


def test_tables_have_a_column_for_each_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlannedRun("w,b.width=0.5", 0, tmp_path, "")
    (tmp_path / "metrics.csv").write_text("step,val/accuracy,test/accuracy,comm/down_bytes_total\n0,0.5,0.75,2000\n")
    _print_results({run.name: [run]}, ACCURACY, {run.name: {"model.levels.b.width": "0.5"}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:3] == ["run", "width", "seeds"]
    assert lines[3] == ["w", "0.5", "1", "75.00", "%", "–", "2.00", "kB", "–"]
    configs = [{"seed_everything": 0, "model": {"class_path": "a.B", "init_args": {"x": x}}} for x in (1, 2)]
    groups = [Group(str(n), (Run(tmp_path, pd.DataFrame(), config),)) for n, config in enumerate(configs)]
    assert swept_settings(groups) == {"model.x": ["1", "2"]}
    assert swept_settings([groups[0], Group("c", (Run(tmp_path, pd.DataFrame(), {"model": {}}),))]) == {}
