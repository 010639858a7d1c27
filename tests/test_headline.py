"""A run's headline metric, and everything that reads a run by it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from hetfl.analysis import (
    calibration_error,
    class_accuracy,
    load_run,
    plot_comparison,
    plot_predictions,
    plot_run,
    plot_score_over_bytes,
    plot_score_over_rounds,
    reliability,
)
from hetfl.analysis.pictures import expected_pictures
from hetfl.cli.exporting import export_line
from hetfl.compare import main as comparing
from hetfl.compare.plan import PlannedRun, standing
from hetfl.display.runs import RunLine, RunsProgress
from hetfl.display.summary import level_table, totals
from hetfl.errors import ConfigurationError
from hetfl.export.card import Card, Constructor, read_card
from hetfl.runs.headline import ACCURACY, FILE, Headline, common_headline, headline_in
from hetfl.types import Level
from tests.headline_cases import MACRO_F1, MAE, PERPLEXITY, R2, write_run
from tests.reading_cases import JSON


@pytest.mark.parametrize("headline", [ACCURACY, MACRO_F1, MAE, R2, PERPLEXITY])
def test_a_headline_is_written_and_read_unchanged(headline: Headline, tmp_path: Path) -> None:
    assert headline_in(tmp_path) == ACCURACY
    (tmp_path / FILE).write_bytes(headline.to_json())
    assert headline_in(tmp_path) == headline


WRONG = {
    "no mapping": "[]",
    "another key": '{"title": "x", "colour": "red"}',
    "a number for a title": '{"title": 3}',
    "a text for a direction": '{"higher_is_better": "no"}',
    "a path for a name": '{"name": "../x"}',
    "a list for a name": '{"name": ["mae"]}',
    "two lines for a title": json.dumps({"title": "mae\n\x1b[2J"}),
    "a long title": json.dumps({"title": "x" * 61}),
    **{name: text for name, (text, _) in JSON.items()},
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_headline_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(WRONG[case])
    with pytest.raises(
        ConfigurationError, match=r"Expected the headline of a run in .*headline\.json but got"
    ) as error:
        headline_in(tmp_path)
    assert "\n" not in str(error.value)


def test_a_headline_formats_its_numbers() -> None:
    assert [MAE.shown(x) for x in (0.000123456, 45.0, 123.456, 54321.0, math.inf, math.nan)] == [
        *("0.0001235", "45.00", "123.5", "54321", "inf", "nan"),
    ]
    assert (MAE.difference(1.5), ACCURACY.difference(0.015)) == ("1.500", "1.50 points")
    assert (R2.heading, MAE.heading) == ("R²", "Mean absolute error")
    assert (R2.in_unit("x"), ACCURACY.in_unit("x")) == ("x", "x (%)")
    assert MAE.best([3.0, math.nan, 2.0]) == 2.0
    assert R2.best([-3.0, math.nan, -2.0]) == -2.0


def test_columns_have_the_name_of_the_headline(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", MAE, [60.0, 50.0], clients=[40.0, 1e6]))
    assert (run.headline, run.levels) == (MAE, ("a", "b"))
    assert run.clients is not None
    assert run.clients["own_mae"].tolist() == [80.0, 2e6]
    write_run(tmp_path / "share", MACRO_F1, [0.5, 1.5])
    with pytest.raises(ConfigurationError, match=r"Expected shares from 0 to 1 in column 'val/macro_f1' of .*got 1\.5"):
        load_run(tmp_path / "share")
    (tmp_path / "run" / FILE).unlink()  # as in a run of the first edition
    with pytest.raises(ConfigurationError, match=r"Expected a column 'accuracy' in .*clients\.csv"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(("headline", "scores"), [(MAE, [60.0, 50.0, 42.5]), (R2, [-1.5, 0.25, 0.625])])
def test_plots_show_scores_without_percent_conversion(headline: Headline, scores: list[float], tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", headline, scores, step=0.125))
    for plot in (plot_score_over_rounds, plot_score_over_bytes):
        ax = plot(run)
        first, second = ax.get_lines()[:2]
        assert np.allclose(first.get_ydata(), scores)
        assert np.allclose(second.get_ydata(), np.array(scores) + 0.125)
        assert ax.get_ylabel() == headline.heading
        assert ax.get_title("left").startswith(f"Validation {headline.words} of each level over")
        ends = [f"a  {headline.shown(scores[-1], 1)}", f"b  {headline.shown(scores[-1] + 0.125, 1)}"]
        assert [text.get_text() for text in ax.texts if text.get_text()[:3] in ("a  ", "b  ")] == ends
    assert plot_run(run.folder) == expected_pictures(run.folder)
    assert (run.folder / "plots" / f"{headline.name}_over_rounds.svg").is_file()


def test_infinite_scores_are_not_plotted_and_equal_scores_have_an_axis(tmp_path: Path) -> None:
    ax = plot_score_over_rounds(load_run(write_run(tmp_path / "run", PERPLEXITY, [math.inf, 8.0, 8.0], step=0.0)))
    assert np.allclose(ax.get_lines()[0].get_xydata(), [(2, 8), (3, 8)])
    low, high = ax.get_ylim()
    assert low < 8 < high


def test_only_runs_with_one_headline_are_compared(tmp_path: Path) -> None:
    runs = {name: load_run(write_run(tmp_path / name, MAE, [60.0, 50.0])) for name in ("one", "two")}
    figure = plot_comparison(runs)
    assert [text.get_text() for text in figure.axes[0].texts] == ["one 50.0", "two 50.0"]
    assert figure.axes[0].get_ylabel() == "Mean absolute error"
    assert any("the line that is lowest in all panels" in text.get_text() for text in figure.texts)
    runs["three"] = load_run(write_run(tmp_path / "three", R2, [0.5]))
    with pytest.raises(ConfigurationError, match="runs with the same score but got mae in one and r2 in three"):
        plot_comparison(runs)


def test_headlines_that_differ_only_in_title_are_the_same() -> None:
    assert common_headline({"x": MAE, "y": dataclasses.replace(MAE, title="MAE")}) == MAE
    with pytest.raises(ConfigurationError, match="mae in x and mae in y"):
        common_headline({"x": MAE, "y": dataclasses.replace(MAE, higher_is_better=True)})


def test_class_figures_are_refused_for_other_objectives() -> None:
    values, targets = torch.randn(5, 1), torch.randn(5)
    message = r"of a classification but got outputs \(5, 1\) and torch.float32 targets \(5,\)"
    for measure in (calibration_error, reliability):
        with pytest.raises(ConfigurationError, match=message):
            measure(values, targets)
    with pytest.raises(ConfigurationError, match=message):
        class_accuracy({"a": values}, targets)
    for wrong in (torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1]), torch.tensor([True, False, True]), torch.zeros(2)):
        with pytest.raises(ConfigurationError, match="of a classification"):
            class_accuracy({"a": torch.zeros(3, 2)}, wrong)
    with pytest.raises(ConfigurationError, match="Expected classes, whole numbers"):
        plot_predictions(torch.rand(5, 8, 8), targets, targets)


# The terminal.


class Module:
    """The attributes of a federated module that the level table reads."""

    def __init__(self) -> None:
        self.levels: Mapping[str, Level] = {"a": Level("a"), "b": Level("b", width=0.5)}

    def submodel(self, level: str) -> torch.nn.Module:
        return torch.nn.Linear(3, 2)


def test_the_summary_shows_the_headline() -> None:
    metrics = {"val/mae": 45.0, "val/mae_by_level/a": 45.0, "test/mae_by_level/b": 47.25, "val/mae_by_head/1": 60.0}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(level_table(Module(), metrics, MAE))
    lines = capture.get().splitlines()
    cells = [re.split("  +", line.strip()) for line in lines if line.strip() and "─" not in line][1:]
    assert cells[0][-2:] == ["val mean absolute error", "test mean absolute error"]
    assert [row[-2:] for row in cells[1:]] == [["45.00", "–"], ["–", "47.25"], ["45.00", "–"], ["60.00", "–"]]
    local = {"local/mae_mean": 45.0, "local/mae_worst10": 90.0, "local/personal_mae": 30.0, "local/accuracy_mean": 0.5}
    assert totals(local, 1.0, MAE) == {
        "local mean absolute error": "45.00 (mean over clients)",
        "worst tenth": "90.00 (mean over the worst clients)",
        "personal mean absolute error": "30.00 (own levels and tensors)",
        "wall time": "1.0 s",
    }


def test_a_comparison_shows_the_headline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = []
    for seed, score in enumerate((50.0, 52.0)):
        run = PlannedRun("width", seed, tmp_path / f"seed_{seed}", "")
        write_run(run.folder, MAE, [60.0, score], seed=seed)
        planned.append(run)
    at = standing(planned[0].folder)
    assert (at.done, at.val_score, at.test_score, at.score, at.up_bytes) == (2, 50.0, 50.0, 50.0, 2e6)
    comparing._print_results({"width": planned}, MAE, {})
    shown = capsys.readouterr().out
    assert "test mean absolute error" in shown
    assert "51.00 (50.00–52.00)" in shown
    line = RunLine("width", 0, 2, done=2, score=at.score, headline=MAE, stage=at.stage)
    with Console(width=150).capture():
        RunsProgress([line]).end(line, "done")
    assert capsys.readouterr().out.endswith(", test mean absolute error 50.0\n")
    console = Console(width=150)
    with console.capture() as capture:
        console.print(RunsProgress([line]).render())
    table = capture.get()
    assert re.split(r"  +", table.splitlines()[0].strip())[-3:] == ["mean absolute error", "time", "left"]
    assert " 50.0 " in table


def test_a_comparison_of_different_headlines_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    text = "{final_test: true, trainer: {max_epochs: 2}}"
    planned = [PlannedRun(name, 0, tmp_path / "runs" / name / "seed_0", text) for name in ("old", "new")]
    write_run(planned[0].folder, R2, [0.25, 0.5])
    planned[0].mark.write_text("2")
    monkeypatch.setattr(comparing, "plan", lambda *_: planned)
    monkeypatch.setattr(comparing, "rehearse", lambda args, loaded: MAE)
    args = [f"-r{name}={tmp_path / name}.yaml" for name in ("old", "new")]
    with pytest.raises(ConfigurationError, match="Expected runs with the same score but got r2 in old and mae in new"):
        comparing.main([*args, "--out", str(tmp_path / "out"), "--dry_run", "--mixed_data"])


# Exported files.


def card(score: dict[str, float] | None) -> Card:
    net = Constructor("hetfl.models.ConvNet", {})
    return Card("a.onnx", "0", Level("a"), "hetfl.FedAvg", 2, net, 10, "float32", {}, 1, score, "0.2")


def test_a_card_contains_the_headline_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert export_line(tmp_path / "a.onnx", card({"test/r2": 0.625, "samples": 9}), R2).endswith(", test R² 0.6250)")
    assert export_line(tmp_path / "a.onnx", card(None), R2).endswith("1 B)")
    path = tmp_path / "a.onnx.json"
    for score in ({"test/r2": 0.625, "samples": 9}, None):
        path.write_text(card(score).to_json())
        assert read_card(path).score == score


def test_a_card_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    written = json.loads(card({"test/accuracy": 0.5, "samples": 4}).to_json())
    written["accuracy"] = written.pop("score")
    path = tmp_path / "a.onnx.json"
    path.write_text(json.dumps(written))
    assert read_card(path).score == {"test/accuracy": 0.5, "samples": 4}
