"""Predicted costs of choosing among models equal the charged ones: bytes, forward passes, seconds, levels by device."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetfl import FederatedModule, HeteroFL, Level, wire
from hetfl.aggregators import Aggregator, HolderMean, QFedAvg
from hetfl.cli import main
from hetfl.clustering import IFCA, ClusteredFL, Clustering
from hetfl.fleet import ByDevice, Device, Fleet, SameDevice
from hetfl.fleet.devices import Devices
from hetfl.levels.table import level_costs
from tests.test_cluster_runs import Fit, grouped, module, rows

ROOT = Path(__file__).parent.parent


class OneSlow(Fleet):
    """A fleet in which client 3 takes a thousand times as long as the others."""

    def draw(self, num_clients: int, seed: int) -> Devices:
        devices = Devices.of_kinds({"device": Device()}, np.zeros(num_clients, np.int64))
        factors = np.where(np.arange(num_clients) == 3, 1e-3, 1.0)
        slow = {name: getattr(devices, name) * factors for name in ("throughput", "downlink", "uplink")}
        return dataclasses.replace(devices, **slow)


def sized(clustering: Clustering | None, fleet: Fleet | None = None, **changes: Any) -> FederatedModule:
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    return module(clustering, HeteroFL, levels=levels, fleet=fleet or SameDevice(), **changes)


@pytest.mark.parametrize("aggregator", [HolderMean(), QFedAvg(1.0)])
@pytest.mark.parametrize("clustering", [None, IFCA(3), IFCA(3, shared=("blocks.*",))], ids=["one", "ifca", "shared"])
def test_the_slowest_clients_round_takes_the_predicted_time(
    fit: Fit, clustering: Clustering | None, aggregator: Aggregator
) -> None:
    tested = sized(copy.deepcopy(clustering), OneSlow(), aggregator=copy.deepcopy(aggregator))
    trainer = fit(tested, grouped(), rounds=1, limit_val_batches=0)
    position = tested.assignment.positions(0)[[3]]
    predicted = tested.forecast.seconds([3], position, 0)[0]
    assert rows(trainer)["sim/round_seconds"][0] == pytest.approx(predicted, rel=1e-4)  # the header of the update


def test_the_level_table_gives_the_download_bytes_of_several_models(fit: Fit) -> None:
    down_bytes = {}
    for name, clustering in {"one": None, "ifca": IFCA(3), "shared": IFCA(3, shared=["blocks.*"]),
                             "cfl": ClusteredFL()}.items():  # fmt: skip
        tested = sized(clustering)
        down = rows(fit(tested, grouped(), rounds=1, name=name, limit_val_batches=0))["comm/down_bytes"][0]
        has = tested.assignment.levels(0)
        uploads = tested.task_parts.upload_sizes(tested.data)
        costs = level_costs(tested.levels, uploads, tested.forecast.down_bytes())
        table = {row.level: row.down_bytes for row in costs}
        assert sum(table[level] for level in has) == down
        down_bytes[name] = table["a"]
    assert down_bytes["one"] == down_bytes["cfl"] == wire.dense_size(tested.levels.sizes["a"])
    assert down_bytes["ifca"] == 3 * down_bytes["one"]
    assert down_bytes["one"] < down_bytes["shared"] < down_bytes["ifca"]


def test_levels_by_device_leave_time_for_choosing_a_cluster(fit: Fit) -> None:
    counts = {}
    for name, clustering in {"one": None, "ifca": IFCA(5)}.items():
        tested = sized(clustering)
        fit(tested, grouped(), rounds=1, name=name, limit_val_batches=0)
        counts[name] = tested.forecast.table()
        if name == "one":
            between = float(counts["one"][0].max()) * 1.01
    assert (counts["ifca"] > counts["one"]).all()
    assignment = ByDevice(between)
    for name, level in (("one", 0), ("ifca", 1)):
        assignment.meet(counts[name])
        assert set(assignment.draw(0).tolist()) == {level}


@pytest.mark.filterwarnings("ignore:The checkpoint holds", "ignore:No client")
def test_models_from_a_checkpoint_are_counted_in_the_prediction(fit: Fit, tmp_path: Path) -> None:
    path, data, five = tmp_path / "five.ckpt", grouped(), sized(IFCA(5))
    fit(five, data, rounds=1).save_checkpoint(path)
    one, two = sized(None), sized(IFCA(2))
    fit(one, data, rounds=2, name="one", ckpt=str(path))
    fit(two, data, rounds=2, name="two", ckpt=str(path))
    assert (two.forecast.table() == five.forecast.table()).all()
    assert (one.forecast.table() < five.forecast.table()).all()


def test_describe_prints_the_number_of_models_that_clients_try(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["experiment/clusters_digits", "clustering/ifca"]
    arguments = [part for file in files for part in ("-c", str(ROOT / f"configs/{file}.yaml"))]
    main(["describe", *arguments, "--model.clustering.clusters=4"])
    output = " ".join(capsys.readouterr().out.split())
    assert "IFCA (each client downloads 4 models and tests them on its data)" in output
