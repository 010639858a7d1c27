"""Partitioners of flwr-datasets: the adapter with a stand-in for the package, and with the package if installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from hetfl.data import Digits, FederatedDataModule, FlowerPartitioner
from hetfl.errors import ConfigurationError


class Table:
    """The part of ``datasets.Dataset`` that the adapter uses."""

    def __init__(self, columns: dict[str, list[int]]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    @staticmethod
    def from_dict(columns: dict[str, list[int]]) -> Table:
        return Table(columns)

    def __getitem__(self, name: str) -> list[int]:
        return self.columns[name]

    def select(self, rows: list[int]) -> Table:
        return Table({name: [values[row] for row in rows] for name, values in self.columns.items()})


class EveryNth:
    """Deals table rows to clients in turn, with the interface of a Flower partitioner."""

    def __init__(self, num_partitions: int, partition_by: str = "label") -> None:
        self._count, self._by = num_partitions, partition_by
        self._dataset: Any = None

    @property
    def dataset(self) -> Any:
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        if self._dataset is not None:
            raise ValueError("The dataset should be assigned only once to the partitioner.\nReally.")
        self._dataset = value

    @property
    def num_partitions(self) -> int:
        return self._count

    def load_partition(self, partition_id: int) -> Any:
        rows = self.dataset[self._by]
        return self.dataset.select(range(partition_id, len(rows), self._count))


class Columns(EveryNth):
    """Divides columns in place of rows."""

    def load_partition(self, partition_id: int) -> Any:
        return Table({"label": self.dataset["label"]})


LABELS = torch.arange(60) * 7 % 5


def parts_of(rule: Any, num_clients: int = 4, seed: int = 0) -> list[Tensor]:
    return FlowerPartitioner(rule)(LABELS, num_clients, torch.Generator().manual_seed(seed))


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=Table))


@pytest.mark.usefixtures("_stand_in")
def test_parts_are_those_of_the_rule_on_shuffled_samples() -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    assert [part.tolist() for part in parts_of(EveryNth(4), seed=3)] == [order[k::4] for k in range(4)]
    assert sorted(torch.cat(parts_of(EveryNth(4))).tolist()) == list(range(60))
    assert parts_of(EveryNth(4))[0].dtype == torch.int64


@pytest.mark.usefixtures("_stand_in")
def test_the_rule_sees_the_label_of_each_sample() -> None:
    class Recording(EveryNth):
        def load_partition(self, partition_id: int) -> Any:
            assert [int(LABELS[i]) for i in self.dataset["position"]] == self.dataset["label"]
            return super().load_partition(partition_id)

    assert len(parts_of(Recording(4))) == 4


@pytest.mark.usefixtures("_stand_in")
def test_one_instance_serves_several_data_modules() -> None:
    partitioner = FlowerPartitioner(EveryNth(10))
    first, again, other = (Digits(num_clients=10, partitioner=partitioner, seed=seed) for seed in (0, 0, 1))
    for module in (first, again, other):
        module.setup()
    assert torch.equal(first.client_data(3).inputs, again.client_data(3).inputs)
    assert not torch.equal(first.client_data(3).inputs, other.client_data(3).inputs)


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: EveryNth(5), "Expected 4 partitions, one per client .num_clients., from EveryNth but got 5"),
        (lambda: EveryNth(4, "digit"), r"from EveryNth \(flwr-datasets\) but got KeyError: 'digit'"),
        (lambda: Columns(4), "Expected a rule that divides samples but got Columns, which divides the columns"),
    ],
)
def test_rules_that_do_not_fit_are_refused_in_one_line(rule: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        parts_of(rule())
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_stand_in")
def test_a_rule_with_a_data_set_is_refused() -> None:
    rule = EveryNth(4)
    rule.dataset = Table({})
    with pytest.raises(ConfigurationError, match="only once to the partitioner. Really"):
        parts_of(rule)


def test_a_missing_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match="Expected the package flwr-datasets .* pip install flwr-datasets"):
        parts_of(EveryNth(4))


@pytest.mark.usefixtures("_stand_in")
def test_yaml_names_the_rule_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rules", SimpleNamespace(EveryNth=EveryNth, __name__="rules"))
    rule = {"class_path": "rules.EveryNth", "init_args": {"num_partitions": 7}}
    partitioner = {"class_path": "hetfl.data.FlowerPartitioner", "init_args": {"partitioner": rule}}
    parser = ArgumentParser()
    parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
    given = {"class_path": "hetfl.data.Digits", "init_args": {"num_clients": 7, "partitioner": partitioner}}
    module = parser.instantiate(parser.parse_object({"data": given})).data
    module.setup()
    assert module.num_clients == 7
    assert max(module.sizes) - min(module.sizes) <= 1


# --- with the package ---


@pytest.fixture
def flower() -> Any:
    return pytest.importorskip("flwr_datasets.partitioner")


@pytest.mark.filterwarnings("ignore")
def test_flowers_partitioners_divide_digits(flower: Any) -> None:
    for rule in (
        flower.IidPartitioner(num_partitions=10),
        flower.DirichletPartitioner(num_partitions=10, partition_by="label", alpha=1.0),
        flower.PathologicalPartitioner(num_partitions=10, partition_by="label", num_classes_per_partition=2,
                                       class_assignment_mode="deterministic"),
    ):  # fmt: skip
        module, again = (Digits(num_clients=10, partitioner=FlowerPartitioner(rule)) for _ in range(2))
        module.setup()
        again.setup()
        assert sum(module.sizes) == 1293
        assert module.sizes == again.sizes
        if "Pathological" in type(rule).__name__:
            assert all(int(module.labels(client).sum()) == 2 for client in range(10))


@pytest.mark.filterwarnings("ignore")
def test_errors_of_flowers_partitioners_are_one_line(flower: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"DirichletPartitioner \(flwr-datasets\) but got ValueError") as error:
        parts_of(flower.DirichletPartitioner(num_partitions=4, partition_by="digit", alpha=1.0))
    assert "\n" not in str(error.value)
