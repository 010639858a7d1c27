"""Snapshots of runs with several global models: one per cluster, each like the snapshot of a run with one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer

from hetfl import ConfigurationError, FederatedModule, HeteroFL, Level
from hetfl.analysis import Snapshots, load_snapshots
from hetfl.clustering import IFCA, Clustering
from hetfl.compression import ErrorFeedback, TopK
from tests.conftest import small_net
from tests.test_cluster_runs import Fit, grouped, module, rows, splitting

pytestmark = pytest.mark.filterwarnings("ignore:No client")


def sized(clustering: Clustering, **changes: Any) -> FederatedModule:
    """Return HeteroFL with two levels and sparse uploads."""
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    return module(clustering, HeteroFL, levels=levels, uplink=ErrorFeedback(TopK(0.3)), **changes)


def folder_of(trainer: Trainer) -> Path:
    return Path(str(trainer.log_dir))


def files_of(trainer: Trainer) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder_of(trainer) / "snapshots").iterdir()}


def test_a_net_is_filled_with_every_clusters_model(fit: Fit) -> None:
    tested = sized(IFCA(2, shared=["blocks.0.*"]), seed=5)
    trainer = fit(tested, grouped(), rounds=3, callbacks=[Snapshots(3)])
    folder, inputs = folder_of(trainer), torch.rand(5, 1, 8, 8)
    assert sorted(files_of(trainer)) == ["round-00002-cluster-1.safetensors", "round-00002.safetensors"]
    assert set(tested.clustering.assigned) == {0, 1}
    for cluster in range(2):
        snapshot = load_snapshots(folder, cluster)[2]
        assert snapshot.cluster == cluster
        for name, tensor in tested.models.tensors[cluster].items():
            assert torch.equal(snapshot.weights[name], tensor)
        for level, width in (("a", 1.0), ("b", 0.5)):
            net = snapshot.fill(small_net(width=width), level)
            assert torch.equal(net(inputs), tested.submodel(level, cluster)(inputs))


def test_counts_of_clusters_add_up_to_the_totals(fit: Fit) -> None:
    tested = sized(IFCA(2))
    trainer = fit(tested, grouped(), rounds=2, callbacks=[Snapshots(1)])
    both = [load_snapshots(folder_of(trainer), cluster).layers() for cluster in range(2)]
    table = pd.concat(both).groupby("step")[["held", "sent"]].sum()
    assert (table["sent"] / table["held"]).tolist() == pytest.approx(rows(trainer)["comm/up_density"].tolist())
    history = pd.DataFrame(tested.clustering.history, columns=["round", "client", "cluster"])
    first = history[history["round"] == 0].groupby("cluster")["client"].count()
    for cluster, layers in enumerate(both):
        first_round = layers[(layers["step"] == 0) & (layers["tensor"] == "classifier.bias")]
        assert first_round["clients"].sum() == first.get(cluster, 0)


@pytest.mark.slow
def test_a_new_cluster_has_snapshots_from_its_split_on_also_after_a_resume(fit: Fit, tmp_path: Path) -> None:
    path = tmp_path / "three.ckpt"
    straight = fit(sized(splitting()), grouped(), rounds=4, callbacks=[Snapshots(1)], name="straight")
    first = fit(sized(splitting()), grouped(), rounds=3, callbacks=[Snapshots(1)], name="first")
    first.save_checkpoint(path)
    fit(sized(splitting()), grouped(), rounds=4, callbacks=[Snapshots(1)], logger=first.logger, ckpt=str(path))
    assert files_of(first) == files_of(straight)
    assert load_snapshots(folder_of(straight)).rounds == (0, 1, 2, 3)
    later = load_snapshots(folder_of(straight), 1)
    assert later.rounds == (1, 2, 3)
    assert later[1].layers()["clients"].sum() == 0  # the cluster was made at the end of the round
    assert later[2].layers()["clients"].sum() > 0
    fit(sized(splitting()), grouped(), rounds=1, logger=first.logger, callbacks=[Snapshots()])
    assert not files_of(first)


def test_wrong_and_missing_cluster_files_have_different_errors(fit: Fit) -> None:
    folder = folder_of(fit(sized(IFCA(2)), grouped(), rounds=1, callbacks=[Snapshots(1)]))
    one, other = (folder / "snapshots" / f"round-00000{mark}.safetensors" for mark in ("", "-cluster-1"))
    with pytest.raises(ConfigurationError, match="snapshots of cluster 2 in .* but got none"):
        load_snapshots(folder, 2)
    other.write_bytes(one.read_bytes())
    with pytest.raises(ConfigurationError, match="it is of round 0 and cluster 0"):
        load_snapshots(folder, 1)[0]
