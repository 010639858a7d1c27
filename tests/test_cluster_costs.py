"""Costs of several models: each needed model is downloaded once, and clusters are counted once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hetfl import wire
from hetfl.clustering import IFCA, Clustering, ClusterProbe, OneCluster
from hetfl.fleet import CsvFleet
from hetfl.piece import Facts
from tests.test_cluster_runs import Fit, grouped, module, rows


def test_a_client_gathers_statistics_with_the_downloaded_model_of_its_cluster(fit: Fit) -> None:
    tested = module(IFCA(2, ask_all=True))
    one = wire.dense_size(tested.levels.sizes["a"])
    assert rows(fit(tested, grouped(), rounds=1))["comm/down_bytes"].tolist() == [(2 + 2) * 8 * one]


class SeparateModel(Clustering):
    """A clustering in which client 7 has a separate model."""

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:
        for client in cohort:
            self.put(round, client, client // 7)


@pytest.mark.filterwarnings("ignore:No client of cluster 1 is within reach")
def test_substitute_client_downloads_the_other_clusters_model(fit: Fit, tmp_path: Path) -> None:
    path = tmp_path / "fleet.csv"
    lines = [f"{client},1e9,1e6,1e6,{0 if client == 7 else 9}\n" for client in range(8)]
    path.write_text("client,throughput,downlink,uplink,last_round\n" + "".join(lines))
    tested = module(SeparateModel(2), fleet=CsvFleet(str(path)), statistics_clients=None)
    one = wire.dense_size(tested.levels.sizes["a"])
    table = rows(fit(tested, grouped(), rounds=2))
    down = table["comm/down_bytes"]
    # Round 0: all clients train, and gather for their own model. Round 1: seven train, and gather for both models.
    assert down.tolist() == [(8 + 8) * one, (7 + 2 * 7) * one]
    assert table["comm/down_training_bytes"].tolist() == [8 * one, 7 * one]
    assert table["comm/down_statistics_bytes"].tolist() == [8 * one, 2 * 7 * one]


def test_the_largest_cluster_is_counted_anew_after_a_change_alone() -> None:
    clustering = OneCluster()
    clustering.setup(Facts((5,) * 6))
    for client, cluster in ((0, 2), (1, 1), (2, 1), (3, 2), (3, 3), (2, 3)):
        clustering.put(0, client, cluster)
        sizes = [clustering.assigned.count(each) for each in range(4)]
        assert clustering.largest == sizes.index(max(sizes))
    clustering.trained = [9] * 6  # nothing counts them while no client changes its cluster
    assert clustering.largest == 3
    clustering.setup(Facts((5,) * 3))
    assert clustering.largest == 0
