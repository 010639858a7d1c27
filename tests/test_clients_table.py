"""``clients.csv``: each client's accuracy with the global model and with its level's sub-model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from hetfl import FedAvg, FederatedModule, HeteroFL
from hetfl.analysis import load_run
from hetfl.fleet import Dynamic, Fixed
from hetfl.selection import Uniform
from hetfl.types import ClientContext
from tests.conftest import small_data, small_levels, small_module
from tests.tree_cases import Given, TextNet


def table(trainer: Trainer) -> list[dict[str, str]]:
    assert trainer.log_dir is not None
    with (Path(trainer.log_dir) / "clients.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("assignment", [Dynamic(), Fixed()])
def test_every_clients_accuracy_equals_a_separate_computation(fit: Callable[..., Trainer], assignment: Dynamic) -> None:
    module, data = small_module(assignment=assignment), small_data()
    trainer = fit(module, data)
    trainer.test(module, datamodule=data, verbose=False)
    rows, has = table(trainer), module.assignment.levels(2)
    assert [row["client"] for row in rows] == [str(client) for client in range(12)]
    for client, row in enumerate(rows):
        samples = data.client_data(client, "test")
        assert row["level"] == has[client]
        assert (int(row["train_samples"]), int(row["test_samples"])) == (len(data.client_data(client)), len(samples))
        for column, level in (("accuracy", "a"), ("own_accuracy", has[client])):
            with torch.no_grad():
                logits = module.submodel(level)(data.transform.eval(samples.inputs))
            absent = ~data.labels(client)
            best = torch.where(absent, 0.0, logits).argmax(-1)  # HeteroFL fills absent logits with 0
            expected = (best == samples.targets).double().mean().item() if len(samples) else None
            assert row[column] == ("" if expected is None else str(expected))
    accuracies = [float(row["accuracy"]) for row in rows if row["accuracy"]]
    assert trainer.callback_metrics["local/accuracy_mean"].item() == pytest.approx(sum(accuracies) / len(accuracies))
    weighted = [float(row["accuracy"]) * int(row["test_samples"]) for row in rows if row["accuracy"]]
    by_samples = sum(weighted) / sum(int(row["test_samples"]) for row in rows)
    assert trainer.callback_metrics["local/accuracy_by_samples"].item() == pytest.approx(by_samples)


def test_names_of_levels_are_not_listed_for_every_batch(fit: Callable[..., Trainer]) -> None:
    asked: list[int] = []

    class Counting(Fixed):
        def levels(self, round: int) -> list[str]:
            asked.append(round)
            return super().levels(round)

    module, data = small_module(assignment=Counting()), small_data(eval_batch_size=50)
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    asked.clear()
    trainer.test(module, datamodule=data, verbose=False)
    assert len(data.test_dataloader()[0]) > 1
    assert asked == [0]  # for clients.csv


@pytest.mark.parametrize("kind", [FedAvg, HeteroFL])
def test_a_second_test_overwrites_the_table(fit: Callable[..., Trainer], kind: type[FederatedModule]) -> None:
    module, data = small_module(kind, levels=small_levels(1.0)), small_data()
    trainer = fit(module, data, rounds=1)
    trainer.test(module, datamodule=data, verbose=False)
    before = table(trainer)
    trainer.test(module, datamodule=data, verbose=False)
    assert table(trainer) == before
    assert all(row["accuracy"] == row["own_accuracy"] for row in before)


NAMES = ("ann, of York", "bob", "cat", "dan", "eve", "nan")


def test_clients_have_the_names_of_the_data(fit: Callable[..., Trainer]) -> None:
    module, data = small_module(net=TextNet, levels=small_levels(1.0)), Given("tokens", NAMES)
    trainer = fit(module, data, rounds=1)
    trainer.test(module, datamodule=data, verbose=False)
    assert [(row["client"], row["name"]) for row in table(trainer)] == [(str(k), name) for k, name in enumerate(NAMES)]
    assert list(table(trainer)[0])[:3] == ["client", "name", "level"]
    clients = load_run(str(trainer.log_dir)).clients
    assert clients is not None
    assert clients["client"].tolist() == list(range(6))


def test_the_table_has_no_name_column_without_client_names(fit: Callable[..., Trainer]) -> None:
    module, data = small_module(levels=small_levels(1.0)), small_data()
    trainer = fit(module, data, rounds=1)
    trainer.test(module, datamodule=data, verbose=False)
    assert "name" not in table(trainer)[0]


class NanLoss(FedAvg):
    """FedAvg in which one client's loss is NaN."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return super().loss(outputs, targets, ctx) * (float("nan") if ctx.client == 1 else 1.0)


def test_a_refused_client_is_reported_with_its_name_in_the_data(fit: Callable[..., Trainer]) -> None:
    module = small_module(NanLoss, net=TextNet, levels=small_levels(1.0), selection=Uniform(6))
    with pytest.warns(UserWarning, match=r"Round 1: update of client 1 \('bob'\) at level a refused: "):
        fit(module, Given("tokens", NAMES), rounds=1)
