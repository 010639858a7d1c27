"""Figures and tables of a run's clusters, and the clustering files in ``configs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer

from hetfl.analysis import load_clusters, plot_cluster_tree, plot_clusters
from hetfl.analysis.cluster_plots import plot_assignments
from hetfl.analysis.clusters import COLUMNS, ClusterSplit, assignments, splits_of
from hetfl.cli import main
from hetfl.clustering import IFCA, ClusteredFL
from hetfl.errors import ConfigurationError
from hetfl.export import export_submodel
from tests.test_cluster_runs import grouped, module

Fit = Callable[..., Trainer]
ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs/clustering").glob("*.yaml"))


def table(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 3)), min_size=1).map(sorted))
def test_a_cluster_lasts_until_the_next_change(rows: list[tuple[int, int, int]]) -> None:
    clusters = assignments(table(rows), 10)
    for client in range(len(clusters)):
        for round in range(10):
            before = [cluster for when, who, cluster in rows if who == client and when <= round]
            assert clusters[client, round] == (before[-1] if before else -1)


BEGIN = [(0, client, 0) for client in range(6)]


def test_splits_are_recognised_in_the_table_and_other_changes_are_not_splits() -> None:
    rows = [*BEGIN, (5, 1, 1), (5, 2, 1), (7, 2, 2), (7, 4, 3), (7, 5, 3)]
    assert splits_of(table(rows)) == [ClusterSplit(5, 0, 1), ClusterSplit(7, 1, 2), ClusterSplit(7, 0, 3)]
    assert splits_of(table(BEGIN)) == []
    assert splits_of(table([*BEGIN, (5, 1, 1), (6, 2, 1)])) == []  # joined later
    assert splits_of(table([*BEGIN, (5, 1, 1), (6, 1, 0)])) == []  # went back
    assert splits_of(table([(0, 0, 1), (0, 1, 0)])) == []  # IFCA's
    with pytest.raises(ConfigurationError, match="clusters that were split but got none"):
        plot_cluster_tree(table(BEGIN), 10)


def test_figures_show_sizes_and_every_client() -> None:
    rows = table([*BEGIN, (5, 1, 1), (5, 2, 1)])
    tree = plot_cluster_tree(rows, 10).axes[0]
    assert [text.get_text() for text in tree.texts] == ["6", "4 clients", "2 clients"]
    assert np.asarray(tree.lines[-1].get_xdata()).tolist() == [6, 6]  # the split in round 5 is at x = 6
    assert tree.get_xlabel() == "Rounds done"
    axes = plot_assignments(rows, 10).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3", "4", "5", "1", "2"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0: 4", "1: 2"]
    assert np.asarray(axes.images[0].get_array())[4].tolist() == [0] * 5 + [1] * 5
    assert axes.get_xlabel() == "Rounds done"
    assert list(axes.images[0].get_extent())[:2] == [0.5, 10.5]


def test_a_run_writes_cluster_tables_and_figures(fit: Fit) -> None:
    clustering = ClusteredFL(eps1=10.0, eps2=1e-6, min_rounds=1)
    trainer = fit(module(clustering), grouped(), rounds=3)
    folder = Path(str(trainer.log_dir))
    assert [tuple(row) for row in load_clusters(folder).itertuples(index=False)] == clustering.history
    tree = pd.read_csv(folder / "cluster_tree.csv")
    assert len(tree) == len(clustering.tree) > 0
    for row, split in zip(tree.to_dict("records"), clustering.tree, strict=True):
        assert row == {**split, "stay": len(split["stay"]), "leave": len(split["leave"])}
    assert [file.name for file in plot_clusters(folder)] == [
        *("clusters.png", "clusters.svg", "cluster_tree.png", "cluster_tree.svg")
    ]
    (folder / "cluster_tree.csv").unlink()  # IFCA's clients may also move together without a split
    assert [file.name for file in plot_clusters(folder)] == ["clusters.png", "clusters.svg"]
    (folder / "clusters.csv").write_text("round,client\n0,1\n")
    with pytest.raises(ConfigurationError, match="columns round, client, cluster of"):
        plot_clusters(folder)
    (folder / "clusters.csv").unlink()
    assert plot_clusters(folder) == []
    with pytest.raises(ConfigurationError, match="model.clustering, but got no such file"):
        load_clusters(folder)


def test_one_of_several_models_is_exported_by_its_number(fit: Fit, tmp_path: Path) -> None:
    tested, data = module(IFCA(2), seed=5), grouped()
    trainer = fit(tested, data, rounds=2)
    trainer.test(tested, datamodule=data, verbose=False)
    for wrong in (None, 2, -1):
        with pytest.raises(ConfigurationError, match=f"cluster from 0 to 1 to export but got {wrong}"):
            export_submodel(tested, "a", tmp_path / "a.safetensors", wrong)
    assert set(tested.clustering.assigned) == {0, 1}
    for cluster in range(2):
        card = export_submodel(tested, "a", tmp_path / f"{cluster}.safetensors", cluster)
        assert card.score is None
    assert (tmp_path / "0.safetensors").read_bytes() != (tmp_path / "1.safetensors").read_bytes()


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, id=file.stem, marks=[pytest.mark.slow] * (file.stem != "ifca")) for file in FILES],
)
def test_every_clustering_file_stacks_on_the_experiment(file: Path, tmp_path: Path) -> None:
    experiment = str(ROOT / "configs/experiment/clusters_digits.yaml")
    short = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--model.init_args.local.epochs=1"]
    place = f"--trainer.logger.init_args.root={tmp_path}"
    main(["fit", "-c", experiment, "-c", str(file), *short, place])
    (folder,) = (path.parent for path in tmp_path.rglob("clusters.csv"))
    assert (folder / "plots/clusters.png").is_file()
    assert set(pd.read_csv(folder / "clients.csv")["cluster"]) <= {0, 1}
