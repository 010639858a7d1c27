"""The data module: the samples of each client, and the loaders of Lightning's evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from hetfl.data import (
    IID,
    Digits,
    Dirichlet,
    FederatedDataModule,
    LabelShards,
    NaturalIds,
    Partitioner,
)
from hetfl.errors import ConfigurationError
from tests.data_cases import SPLITS, flat, numbered, numbers, ready

CONFIGS = Path(__file__).parent.parent / "configs" / "data"


PARTITIONERS = [IID(), Dirichlet(0.5, min_samples=3), LabelShards(2)]


# --- the module ---


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=lambda p: type(p).__name__)
def test_held_out_samples_belong_to_no_client(partitioner: Partitioner) -> None:
    module = ready(numbered(num_clients=10, partitioner=partitioner, val_fraction=0.2))
    held_out = module.resident.validation.inputs[:, 0].int().tolist()
    owned = flat(numbers(module, "train"))
    assert len(held_out) == 40
    assert len(set(owned)) == len(owned)
    assert not set(held_out) & set(owned)
    assert len(owned) + module.unassigned == 160
    assert set(held_out) | set(owned) <= set(range(200))


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=lambda p: type(p).__name__)
def test_clients_see_inputs_with_their_own_targets(partitioner: Partitioner) -> None:
    module = ready(numbered(num_clients=10, partitioner=partitioner))
    for k in range(10):
        train, test = module.client_data(k), module.client_data(k, "test")
        assert torch.equal(train.targets, train.inputs[:, 0].long() * 7 % 5)
        assert torch.equal(test.targets, (test.inputs[:, 0].long() - 1000) % 5)
        assert module.labels(k).nonzero().flatten().tolist() == sorted(set(train.targets.tolist()))
        assert set(test.targets.tolist()) <= set(train.targets.tolist())
        assert module.sizes[k] == len(train)


def test_iid_clients_share_the_whole_test_set() -> None:
    module = ready(numbered(num_clients=10))
    assert sorted(flat(numbers(module, "test"))) == list(range(1000, 1080))


def test_a_second_setup_loads_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(Digits(num_clients=20))
    before = [module.client_data(k) for k in range(20)]
    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("loaded twice"))
    module.setup("test")
    assert all(module.client_data(k) is before[k] for k in range(20))


def test_client_data_is_a_view_of_one_tensor() -> None:
    module = ready(Digits(num_clients=20))
    for split in SPLITS:
        storages = {module.client_data(k, split).inputs.untyped_storage().data_ptr() for k in range(20)}
        assert len(storages) == 1


def test_the_split_is_a_function_of_the_seed() -> None:
    first, again, other = (ready(numbered(num_clients=10, seed=seed)) for seed in (3, 3, 4))
    assert numbers(first, "train") == numbers(again, "train")
    assert numbers(first, "test") == numbers(again, "test")
    assert numbers(first, "train") != numbers(other, "train")
    assert not torch.equal(first.resident.validation.inputs, other.resident.validation.inputs)


def test_loaders_give_every_sample_once_with_its_owner() -> None:
    module = ready(numbered(num_clients=10, partitioner=LabelShards(2), eval_batch_size=16))
    assert list(module.train_dataloader()) == [0]
    assert len(module.train_dataloader()) == 1
    held_out, owned = (list(loader) for loader in module.val_dataloader())
    (everything,) = (list(loader) for loader in module.test_dataloader())
    assert [len(batch.targets) for batch in held_out] == [16, 4]
    assert all((batch.owner == -1).all() and batch.owner.dtype == torch.int64 for batch in held_out)
    assert sorted(torch.cat([batch.inputs for batch in held_out])[:, 0].tolist()) == sorted(
        module.resident.validation.inputs[:, 0].tolist()
    )
    owners = {number: k for k, part in enumerate(numbers(module, "test")) for number in part}
    for batches, expected in ((owned, set(owners)), (everything, set(range(1000, 1080)))):
        seen = [(int(x), int(y), int(k)) for b in batches for x, y, k in zip(b.inputs, b.targets, b.owner, strict=True)]
        assert sorted(x for x, _, _ in seen) == sorted(expected)
        assert all(y == (x - 1000) % 5 and k == owners.get(x, -1) for x, y, k in seen)


def test_local_metrics_can_be_switched_off() -> None:
    assert len(ready(numbered(num_clients=5, local_metrics=False)).val_dataloader()) == 1


def test_validation_never_falls_back_on_the_test_set() -> None:
    module = ready(numbered(num_clients=5, val_fraction=0.0))
    assert sum(module.sizes) == 200
    with pytest.raises(ConfigurationError, match="Expected val_fraction > 0 .* never on the test set"):
        module.val_dataloader()


class OneStep(pl.LightningModule):
    """Counts the batches that Lightning passes."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[tuple[str, int, int]] = []

    def training_step(self, batch: int, batch_idx: int) -> None:
        self.seen.append(("train", batch, batch_idx))

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, _, owner = batch
        self.seen.append((f"val{dataloader_idx}", len(inputs), int((owner >= 0).sum())))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_lightning_runs_one_round_an_epoch(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    model = OneStep()
    trainer.fit(model, datamodule=numbered(num_clients=5))
    assert model.seen == [("train", 0, 0), ("val0", 20, 0), ("val1", 80, 80)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clients": 100}, r"Expected at least 2 training samples per client .* but client \d+ has 1"),
        ({"num_clients": 500}, "Expected 1 client to 180, the number of samples, but got num_clients=500"),
        ({"num_clients": None}, "Expected num_clients, as IID does not go by client ids, but got null"),
        ({"num_clients": 5, "val_fraction": 1.0}, "in .0, 1. but got 1.0"),
        ({"num_clients": 5, "val_fraction": 0.001}, "Expected to hold out some of 200 samples"),
        ({"num_clients": 5, "partitioner": NaturalIds()}, "Expected client ids in the data, as NaturalIds"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(numbered(**arguments))
    assert "\n" not in str(error.value)


def test_clients_with_one_sample_are_accepted_on_request() -> None:
    assert set(ready(numbered(num_clients=100, min_samples=1)).sizes) == {1, 2}


def test_a_partitioner_that_gives_a_sample_twice_is_refused() -> None:
    class Greedy(Partitioner):
        def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
            return [torch.arange(len(labels))] * num_clients

    with pytest.raises(ConfigurationError, match="Greedy but got 3 parts with 360 samples given away twice") as error:
        ready(numbered(num_clients=3, partitioner=Greedy()))
    assert error.type is ConfigurationError


def test_unassigned_samples_are_logged_and_in_the_summary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), caplog.at_level("INFO", "lightning.pytorch"):  # the command line raises the level
        module = ready(Digits(num_clients=50, partitioner=LabelShards(2)))
    assert module.unassigned == 1293 - sum(module.sizes) > 0
    assert f"Digits: {module.unassigned} training samples belong to no client" in caplog.text
    assert re.fullmatch(
        rf"Digits: 10 classes, {sum(module.sizes)} training samples on 50 clients \(smallest \d+, median \S+, "
        rf"largest {max(module.sizes)}\), {module.unassigned} at no client, 144 held out, 360 test, "
        r"of one class: client.*",
        module.summary(),
    )


def test_use_before_setup_is_refused() -> None:
    module = Digits()
    for use in (lambda: module.num_clients, lambda: module.transform, lambda: module.client_data(0)):
        with pytest.raises(RuntimeError, match="setup"):
            use()


# --- natural clients ---


def test_clients_can_be_named_by_the_data() -> None:
    ids = ["north" if i % 3 else "south" for i in range(200)]
    test_ids = ["south" if i % 2 else "west" for i in range(80)]
    module = ready(numbered(train_clients=ids, test_clients=test_ids))
    north, south = numbers(module, "train")
    assert all(i % 3 for i in north)
    assert not any(i % 3 for i in south)
    assert len(north) + len(south) == 180
    # The west has no training samples; the north has no test samples.
    assert numbers(module, "test") == [[], list(range(1001, 1080, 2))]


def test_ids_without_test_ids_match_the_test_set_by_class() -> None:
    module = ready(numbered(train_clients=[i * 7 % 5 for i in range(200)]))
    assert [{(x - 1000) % 5 for x in part} for part in numbers(module, "test")] == [{0}, {1}, {2}, {3}, {4}]


def test_a_wrong_number_of_natural_clients_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="null or 4, the number of client ids .* but got 9"):
        ready(numbered(train_clients=[i % 4 for i in range(200)], num_clients=9))
    assert ready(numbered(train_clients=[i % 4 for i in range(200)], num_clients=9, partitioner=IID())).num_clients == 9


# --- configuration ---


def from_yaml(path: Path) -> FederatedDataModule:
    parser = ArgumentParser()
    parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
    module = parser.instantiate(parser.parse_path(path)).data
    assert isinstance(module, FederatedDataModule)
    return module


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_its_data_module(path: Path) -> None:
    assert f"class_path: hetfl.data.{type(from_yaml(path)).__name__}\n" in path.read_text()


def test_the_bundled_configuration_works_without_a_download() -> None:
    module = ready(from_yaml(CONFIGS / "digits.yaml"))
    assert module.num_clients == 50
    assert min(module.sizes) >= 10


@pytest.mark.parametrize("name", ["min_samples", "eval_batch_size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected {name} of at least 1 but got 0"):
        numbered(num_clients=2, **{name: 0})
