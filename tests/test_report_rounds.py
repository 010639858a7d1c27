"""Comparisons in a report: accuracies of the same round, and levels of nearly equal size at a budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from hetfl.analysis import load_run
from hetfl.report import write_report
from hetfl.report.groups import make_groups
from hetfl.report.series import last_validated, value_after
from tests.report_cases import ROUNDS, cells, text_of, two_groups, write_levels, write_run


def validated_in(folder: Path, accuracies: Mapping[int, float]) -> Path:
    """Let a run have validation values only in these rounds, numbered from 1."""
    path = folder / "metrics.csv"
    metrics = pd.read_csv(path)
    for column in ("val/accuracy", "val/accuracy_by_level/a", "local/accuracy_mean"):
        metrics[column] = (metrics["step"] + 1).map(accuracies)
    metrics.to_csv(path, index=False)
    return folder


def untested(root: Path, rounds: Mapping[str, Mapping[int, float]]) -> dict[str, list[Path]]:
    return {
        name: [validated_in(write_run(root / name, levels="a", tested=False), accuracies)]
        for name, accuracies in rounds.items()
    }


def test_groups_are_compared_after_the_last_common_validated_round(tmp_path: Path) -> None:
    groups = untested(tmp_path, {"one": {3: 0.3, 6: 0.6, 8: 0.8}, "two": {3: 0.4, 6: 0.5}})
    text = text_of(groups)
    assert "so accuracies are those of validation after round 6, the last that all runs validated" in text
    table = cells(text, "Validation accuracy after round 6, by name of the level")
    assert table[1:] == [["one", "60.00 %"], ["two", "50.00 %"]]
    clients = cells(text, "Accuracy on the clients' test data after round 6")
    assert [row[1] for row in clients[1:]] == ["60.00 %", "50.00 %"]
    assert "after the last round" not in text
    write_report(groups, tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out/summary.csv")
    assert set(summary["val_round"]) == {6}
    assert summary[summary["part"] == "global"]["val_accuracy"].tolist() == [0.6, 0.5]


def test_without_a_common_round_there_are_dashes(tmp_path: Path) -> None:
    text = text_of(untested(tmp_path, {"one": {3: 0.3, 8: 0.8}, "two": {6: 0.5}}))
    assert "there is no round that all runs validated, so there are no final accuracies" in text
    table = cells(text, "Validation accuracy after a round that all validated, by name of the level")
    assert table[1:] == [["one", "–"], ["two", "–"]]


def test_a_value_is_taken_from_its_round_only(tmp_path: Path) -> None:
    groups = untested(tmp_path, {"one": {3: 0.3, 6: 0.6}})
    (run,) = (load_run(folder) for folder in groups["one"])
    assert value_after(run, "val/accuracy", 5) == 0.6
    assert value_after(run, "val/accuracy", 6) is None
    assert value_after(run, "val/accuracy") is None
    assert value_after(run, "comm/up_bytes_total") == ROUNDS * 1e6
    assert value_after(run, "not/there") is None
    assert last_validated(make_groups({"one": [run]})) == 5


def test_different_numbers_of_rounds_are_noted_beside_the_accuracies(tmp_path: Path) -> None:
    groups = {"long": [write_run(tmp_path / "long")], "short": [write_run(tmp_path / "short", rounds=5)]}
    text = text_of(groups)
    note = "Runs have different numbers of rounds (long 8, short 5), and each run is evaluated after its last round."
    assert text.index("## In detail") < text.index(note) < text.index("Test accuracy")
    assert "different numbers of rounds" not in text_of(two_groups(tmp_path / "same"))


def test_levels_of_nearly_equal_size_are_compared_at_a_budget(tmp_path: Path) -> None:
    groups = two_groups(tmp_path, seeds=[0])
    for name, sizes in (("high", {"a": 1000, "b": 500, "c": 100}), ("low", {"a": 520, "b": 110, "c": 10})):
        write_levels(groups[name][0], sizes)
    text = text_of(groups)
    table = cells(text, "Validation accuracy at the same uploaded bytes")
    assert table[0] == ["budget", "group", *(
        f"{name} param." for name in ("a, 1.00 k", "b / a, 500–520", "c / b, 100–110", "c, 10")
    )]  # fmt: skip
    high, low = table[-2:]
    assert high[2:] == ["90.00 %", "80.00 %<br>level b", "70.00 %<br>level c", "–"]
    assert low[2:] == ["–", "70.00 %<br>level a", "60.00 %<br>level b", "50.00 %"]
    assert "A column holds levels of nearly the same cost" in text


def test_a_budget_before_the_first_validation_is_left_out(tmp_path: Path) -> None:
    """Of 8 MB one run has a score from 5 MB on, so a quarter, 2 MB, and a half, 4 MB, would be dashes alone."""
    text = text_of(untested(tmp_path, {"one": {5: 0.5, 8: 0.8}, "two": {6: 0.6, 8: 0.7}}))
    table = cells(text, "Validation accuracy at the same uploaded bytes")
    assert [row[:2] for row in table[1:]] == [["all: 8.00 MB", "one"], ["all: 8.00 MB", "two"]]
    again = text_of(untested(tmp_path / "again", {"one": {4: 0.5, 8: 0.8}, "two": {6: 0.6, 8: 0.7}}))
    table = cells(again, "Validation accuracy at the same uploaded bytes")
    assert [row[0] for row in table[1:]] == ["½: 4.00 MB"] * 2 + ["all: 8.00 MB"] * 2


def test_without_sizes_levels_are_compared_by_name_at_a_budget(tmp_path: Path) -> None:
    text = text_of(two_groups(tmp_path, seeds=[0]))
    assert "The levels of a column have the same name; their sizes are unknown." in text


def test_levels_of_different_density_have_different_sizes(tmp_path: Path) -> None:
    folders = {name: write_run(tmp_path / name, top=top) for name, top in (("dense", 0.9), ("sparse", 0.8))}
    for name, densities in (("dense", {"a": 1.0, "b": 0.5, "c": 0.25}), ("sparse", {"a": 0.5, "b": 0.25, "c": 0.25})):
        write_levels(folders[name], dict.fromkeys("abc", 1000), densities=densities)
    text = text_of({name: [folder] for name, folder in folders.items()})
    table = cells(text, "Test accuracy of levels of nearly the same parameters, one row each")
    assert [row[0] for row in table[1:]] == ["a", "b / a", "c / b", "c"]
    assert table[1][1] == "90.00 %<br>a: width 0.5, 1,000 parameters, 1.00 kFLOP a sample"
    assert table[2][2] == "80.00 %<br>a: width 0.5 × density 0.5, 500 parameters, 500 FLOP a sample"
    write_report({name: [folder] for name, folder in folders.items()}, tmp_path / "out")
    points = pd.read_csv(tmp_path / "out/plots/accuracy_over_size.csv")
    assert points.iloc[:, 3].tolist() == [0.25, 0.5, 1.0, 0.25, 0.25, 0.5]
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index(["group", "part"])
    assert summary["parameters"]["sparse", "a"] == summary["training_flops"]["sparse", "a"] == 500


def test_a_level_without_a_width_is_described_without_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "g", levels="a")
    write_levels(folder, {"a": 1000})
    table = pd.read_csv(folder / "levels.csv")
    table.assign(width=None, depth=3).to_csv(folder / "levels.csv", index=False)
    assert "a: depth 3, 1,000 parameters" in text_of({"g": [folder]})


def test_small_times_are_not_printed_as_zero(tmp_path: Path) -> None:
    costs = {"comm/up_bytes_total": 1e6, "sim/seconds_total": 0.0056}
    text = text_of({"g": [write_run(tmp_path / "g", per_round=costs)]})
    assert cells(text, "The groups, and the total costs of a run")[1][-1] == "0.045 s"


@pytest.mark.parametrize("name", ["模型", "مدل", "🙂"])
def test_names_with_characters_missing_in_the_font_are_kept_without_a_warning(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = write_report({name: [write_run(tmp_path / "g", levels="a")]}, tmp_path / "out")
    assert name in html.read_text()
    assert name in (tmp_path / "out/plots/accuracy_over_rounds.svg").read_text()
