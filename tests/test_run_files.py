"""Damaged files of a run are named in one line, and valid files are not refused."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetfl.analysis import load_run
from hetfl.analysis.runs import read_metrics
from hetfl.cli import main
from hetfl.errors import ConfigurationError
from tests.report_cases import write_clients, write_levels, write_run

METRICS = "step,val/accuracy,comm/up_bytes_total,train/loss\n0,0.25,10,2.5\n1,,10,inf\n3,0.5,30,nan\n"
LEVELS = "level,width,depth,parameters,forward_flops,training_flops,down_bytes,up_bytes\n"
CLIENTS = "client,level,train_samples,test_samples,accuracy,own_accuracy\n"


def test_gaps_diverged_losses_and_a_level_named_nan_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / "levels.csv").write_text(LEVELS + "nan,0.5,,9,9,9,9,9\nNA,,3,4,4,4,4,4\n")
    (tmp_path / "clients.csv").write_text(CLIENTS + "0,nan,3,0,,nan\n")
    run = load_run(tmp_path)
    assert np.array_equal(run.series("val/accuracy"), [0.25, np.nan, 0.5], equal_nan=True)
    assert np.array_equal(run.series("train/loss"), [2.5, np.inf, np.nan], equal_nan=True)
    assert run.level_table is not None
    assert run.level_table["level"].tolist() == ["nan", "NA"]
    assert run.clients is not None
    assert run.clients["own_accuracy"].isna().all()


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("\n1,", "\nx,", "whole numbers from 0 in column 'step' of .* but got 'x' in line 3"),
        ("\n1,", "\n1.5,", "whole numbers from 0 in column 'step' of .* but got 1.5 in line 3"),
        ("\n1,", "\n,", "a round in column 'step' of .* but got none in line 3"),
        ("\n0,", "\n-1,", "whole numbers from 0 in column 'step' of .* but got -1 in line 2"),
        ("\n1,", "\n0,", "rounds that rise in column 'step' of .* but got 0 after 0 in line 3"),
        ("\n1,", "\n5,", "rounds that rise in column 'step' of .* but got 3 after 5 in line 4"),
        ("\n3,", "\ninf,", "whole numbers from 0 in column 'step' of .* but got inf in line 4"),
        (",0.25,", ",good,", "shares from 0 to 1 in column 'val/accuracy' of .* but got 'good' in line 2"),
        (",0.25,", ",True,", "shares from 0 to 1 in column 'val/accuracy' of .* but got 'True' in line 2"),
        (",0.25,", ",37,", "shares from 0 to 1 in column 'val/accuracy' of .* but got 37 in line 2"),
        (",0.25,", ",-0.3,", "shares from 0 to 1 in column 'val/accuracy' of .* but got -0.3 in line 2"),
        (",0.25,", ",inf,", "shares from 0 to 1 in column 'val/accuracy' of .* but got inf in line 2"),
        (",10,2.5", ",10,much", "Expected numbers in column 'train/loss' of .* but got 'much' in line 2"),
        (",10,2.5", ",inf,2.5", "finite numbers from 0 in column 'comm/up_bytes_total' of .* but got inf in line 2"),
        (",10,2.5", ",-10,2.5", "finite numbers from 0 in column 'comm/up_bytes_total' of .* but got -10 in line 2"),
        (",10,2.5", ",40,2.5", "a total that does not fall in column 'comm/up_bytes_total' of .* but got 10 after 40"),
        ("train/loss", "step", "every column once in .* but got 'step' twice"),
        ("\n1,", "\n\n1,", "a round in column 'step' of .* but got none in line 3"),
        ("0.25", "\0", "Expected text in .*metrics.csv but got byte 0x00"),
    ],
)
def test_damaged_metrics_are_refused_in_one_line(tmp_path: Path, was: str, now: str, message: str) -> None:
    assert was in METRICS
    (tmp_path / "metrics.csv").write_text(METRICS.replace(was, now, 1))
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("levels.csv", LEVELS, "at least one row in .*levels.csv but got only a header"),
        (
            "levels.csv",
            LEVELS + "a,1,,9,9,9,9,9\na,1,,9,9,9,9,9\n",
            "every level once in .* but got 'a' again in line 3",
        ),
        ("levels.csv", LEVELS + ",1,,9,9,9,9,9\n", "a name in column 'level' of .* but got none in line 2"),
        ("levels.csv", LEVELS + "a,x,,9,9,9,9,9\n", "finite numbers from 0 in column 'width' of .* but got 'x'"),
        ("levels.csv", LEVELS + "a,1,inf,9,9,9,9,9\n", "finite numbers from 0 in column 'depth' of .* but got inf"),
        ("levels.csv", LEVELS + "a,1,,9,9,-9,9,9\n", "from 0 in column 'training_flops' of .* but got -9 in line 2"),
        ("clients.csv", CLIENTS, "at least one row in .*clients.csv but got only a header"),
        ("clients.csv", CLIENTS + "0,a,3,3,50,1\n", "shares from 0 to 1 in column 'accuracy' of .* but got 50"),
        ("clients.csv", CLIENTS + "0,a,3,3,1,-1\n", "shares from 0 to 1 in column 'own_accuracy' of .* but got -1"),
        (
            "clients.csv",
            CLIENTS + "0,a,3.5,3,1,1\n",
            "whole numbers from 0 in column 'train_samples' of .* but got 3.5",
        ),
        ("config.yaml", "a: \x01\n", "Expected YAML in .*config.yaml"),
        ("config.yaml", "a: 2001-99-99\n", "Expected YAML in .*config.yaml but got: month must be in"),
        ("config.yaml", "a: !!python/object:os.system {}\n", "Expected YAML in .*config.yaml but got: could not"),
        (
            "config.yaml",
            "a: &x\n  b: *x\n",
            "settings with an end in .*config.yaml but got some that lie in themselves",
        ),
        ("config.yaml", "a: &x [1, *x]\n", "settings with an end in .*config.yaml"),
        ("config.yaml", "[" * 5000, "at most 100 lists and mappings inside each other in .*config.yaml but got more"),
        ("config.yaml", "trainer: 5\n", "Expected settings below trainer in .*config.yaml but got 5"),
        ("config.yaml", "model: {class_path: x, init_args: foo}\n", "below init_args of x in .* but got 'foo'"),
        ("config.yaml", "trainer: {callbacks: [{class_path: x, init_args: [1]}]}\n", r"of x in .* but got \[1\]"),
        ("config.yaml", "trainer: {max_epochs: abc}\n", "a whole number for trainer.max_epochs in .* but got 'abc'"),
        ("config.yaml", "seed_everything: [1]\n", r"a whole number for seed_everything in .* but got \[1\]"),
    ],
)
def test_other_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.csv", "levels.csv", "clients.csv", "config.yaml"])
def test_undecodable_files_are_reported_in_one_line_with_status_2(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    write_levels(folder, {"a": 3, "b": 2, "c": 1})
    write_clients(folder, [0.5])
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:20] + b"\xff" + content[20:])
    with pytest.raises(SystemExit) as caught:
        main(["report", str(folder), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error == f"hetfl: error: Expected text in {folder / name} but got byte 0xff at 20\n"


CELLS = st.one_of(st.text(max_size=6), st.floats().map(str), st.integers().map(str), st.sampled_from(["", "nan", "1"]))


@given(st.integers(0, 3), st.integers(0, 3), CELLS)
@example(3, 0, str(2**64))
def test_every_cell_is_read_as_a_number_or_refused_in_one_line(row: int, column: int, cell: str) -> None:
    lines = [line.split(",") for line in METRICS.splitlines()]
    lines[row][column] = cell
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.csv"
        path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8", errors="replace")
        try:
            metrics = read_metrics(path)
        except ConfigurationError as error:
            refused = str(error)
            metrics = None
    if metrics is None:
        assert len(refused.splitlines()) == 1
        return
    for name in metrics.columns:
        assert pd.api.types.is_numeric_dtype(metrics[name])
    assert (metrics["step"].diff().dropna() > 0).all()
