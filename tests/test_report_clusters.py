"""Clusters in a report: numbers of hand-written runs, and no cluster section if every run had one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hetfl.analysis import load_run
from hetfl.errors import ConfigurationError
from hetfl.report import write_report
from hetfl.report.clusters import cluster_figures, cluster_table, clustered
from hetfl.report.document import Cell
from hetfl.report.groups import make_groups
from hetfl.runs.metrics_file import MetricsFile
from tests.report_cases import ROUNDS, write_run

NAMES = ("cluster_members", "cluster_accuracy", "cluster_tree")
BEGIN = [(0, client, 0) for client in range(6)]
SPLIT = [*BEGIN, (3, 4, 1), (3, 5, 1)]
WRONG = ("1,x", "-1,0", "1,0,0", "1")
MOVING = [(0, 0, 0), (0, 1, 1), (1, 2, 1), (4, 1, 0), (6, 1, 1), (6, 2, 0)]


def write_clusters(
    folder: Path, history: Sequence[tuple[int, int, int]], ends: Sequence[float], count: int, tree: bool = False
) -> Path:
    """Write the cluster of each client into a run's folder; accuracies grow to ``ends``, one per used cluster."""
    if tree:
        (folder / "cluster_tree.csv").write_text("round,parent,child,stay,leave,similarity\n3,0,1,4,2,-0.5\n")
    pd.DataFrame(history, columns=["round", "client", "cluster"]).to_csv(folder / "clusters.csv", index=False)
    file = MetricsFile(folder / "metrics.csv")
    for step in range(ROUNDS):
        accuracies = {f"cluster/accuracy/{c}": end * (step + 1) / ROUNDS for c, end in enumerate(ends)}
        file.add(step, {"cluster/count": count, **(accuracies if step % 2 else {})})
    return folder


def cells(folder: Path) -> list[str | Cell]:
    [row] = cluster_table(clustered(make_groups({"x": [load_run(folder)]}))).rows
    return list(row)


def test_the_table_counts_models_clients_and_changes(tmp_path: Path) -> None:
    split = write_clusters(write_run(tmp_path / "split"), SPLIT, [0.9, 0.8], 2)
    assert cells(split) == ["x", "0", "2", "4, 2", "90.00 %, 80.00 %", Cell("2", "the last in round 4")]
    moving = write_clusters(write_run(tmp_path / "moving"), MOVING, [0.9, 0.8], 3)
    assert cells(moving) == ["x", "0", "3", "2, 1, 0", "90.00 %, 80.00 %, –", Cell("3", "the last in round 7")]
    still = write_clusters(write_run(tmp_path / "still"), BEGIN, [], 1)
    assert cells(still) == ["x", "0", "1", "6", "–", Cell("0")]
    many = write_clusters(write_run(tmp_path / "many"), [(0, c, c) for c in range(9)], [0.1 * c for c in range(9)], 9)
    assert cells(many)[2:5] == ["9", "1 to 1", "0.00 % to 80.00 %"]
    later = write_clusters(write_run(tmp_path / "later"), [(0, 0, 0), (0, 1, 2)], [0.9, np.nan, 0.8], 3)
    assert cells(later)[3:5] == ["1, 0, 1", "90.00 %, –, 80.00 %"]
    unknown = write_clusters(write_run(tmp_path / "unknown"), SPLIT, [0.9, 0.8], 0)
    assert cells(unknown)[2] == "2"


def test_figures_show_the_first_run_of_each_group_in_order(tmp_path: Path) -> None:
    folders = {
        "one": [write_run(tmp_path / "0")],
        "ifca": [write_clusters(write_run(tmp_path / f"1{s}", s), MOVING, [0.9, 0.8], 2) for s in (1, 2)],
        "looks split": [write_clusters(write_run(tmp_path / "3"), SPLIT, [0.9, 0.8], 2)],  # IFCA, no split
        "cfl": [write_clusters(write_run(tmp_path / "2"), SPLIT, [0.9, 0.8], 2, tree=True)],
    }
    groups = make_groups({name: [load_run(each) for each in paths] for name, paths in folders.items()})
    drawn = cluster_figures(groups)
    titles = {
        name: [ax.get_title("left") for ax in each.figure.axes] for name, each in drawn.items() if each is not None
    }
    all_three = ["ifca, seed 1", "looks split, seed 0", "cfl, seed 0"]
    assert titles == {"cluster_members": all_three, "cluster_accuracy": all_three, "cluster_tree": ["cfl, seed 0"]}
    accuracy = drawn["cluster_accuracy"]
    assert accuracy is not None
    assert accuracy.figure.axes[0].lines[1].get_xydata()[-1].tolist() == [8.0, 80.0]  # type: ignore[index, union-attr]


@pytest.mark.slow
def test_cluster_figures_are_in_the_report_and_removed_without_clusters(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_clusters(write_run(tmp_path / "two"), SPLIT, [0.9, 0.8], 2, tree=True)
    out = tmp_path / "report"
    write_report({"one": [one], "two": [two]}, out)
    text = (out / "report.md").read_text()
    assert "## Clusters" in text
    assert "One global model for all clients in one." in text
    assert "4, 2" in (out / "report.html").read_text()
    for name in NAMES:
        assert f"plots/{name}.png" in text
        assert (out / "plots" / f"{name}.svg").is_file()
    write_report({"one": [one]}, out)
    assert "Clusters" not in (out / "report.md").read_text()
    assert not any((out / "plots" / f"{name}.svg").exists() for name in NAMES)


@pytest.mark.parametrize("content", ["", "round,client,cluster\n", *(f"round,client,cluster\n0,{c}\n" for c in WRONG)])
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "clusters.csv").write_text(content)
    with pytest.raises(ConfigurationError, match=r"whole numbers in columns round, client, cluster of .*clusters\.csv"):
        load_run(folder)
