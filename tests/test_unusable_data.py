"""Samples and clients that cannot be used are refused by name, or left out."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from hetfl.data import ClientData, Dirichlet, FeatureNoise, Plain, TensorData, client_table
from hetfl.errors import ConfigurationError
from tests.data_cases import SPLITS, flat, numbered, numbers, ready


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("named", [True, False])
def test_non_finite_values_are_refused_or_left_out(value: float, split: Literal["train", "test"], named: bool) -> None:
    module = numbered(
        num_clients=None if named else 4,
        train_clients=[f"c{i % 4}" for i in range(200)] if named else None,
        test_clients=[f"c{i % 4}" for i in range(80)] if named else None,
    )
    data = module.train_data if split == "train" else module.test_data
    spoilt = data.inputs.double()
    spoilt[[0, 7]] = value
    changed = ClientData(spoilt, data.targets)
    setattr(module, f"{split}_data", changed)
    where = "training" if split == "train" else "test"
    clients = " of clients 'c0', 'c3'" if named else ""
    with pytest.raises(
        ConfigurationError, match=rf"all {where} inputs but got others in samples 0, 7{clients}: set drop"
    ):
        module.setup()
    module.drop_unusable = True
    with pytest.warns(UserWarning, match="TensorData: 2 samples with unusable values are left out"):
        module.setup()
    train = [*flat(numbers(module, "train")), *module.resident.validation.inputs[:, 0].int().tolist()]
    assert sorted(train) == [i for i in range(200) if split == "test" or i not in (0, 7)]
    test = module.resident.all_test.inputs[:, 0].int().tolist()
    assert sorted(test) == [1000 + i for i in range(80) if split == "train" or i not in (0, 7)]


def test_data_without_any_usable_sample_is_refused() -> None:
    module = numbered(num_clients=4, drop_unusable=True)
    module.train_data = ClientData(torch.full((200, 1), torch.nan), module.train_data.targets)
    with pytest.raises(ConfigurationError, match="a training sample with finite values but all 200 have others"):
        module.setup()


def test_a_client_transform_that_makes_values_non_finite_is_named() -> None:
    class Blinding(FeatureNoise):
        def apply(self, inputs: Tensor, *rest: Any) -> Tensor:
            return inputs / 0

    with pytest.raises(ConfigurationError, match=r"as Blinding changes them but got others in samples 0, 1, .* more"):
        ready(numbered(num_clients=4, client_transform=Blinding(0.1)))


def test_a_transform_that_makes_values_non_finite_is_named() -> None:
    class PerSample(Plain):
        def eval(self, inputs: Tensor) -> Tensor:
            return inputs / inputs.std(dim=1, correction=0, keepdim=True)

    with pytest.raises(ConfigurationError, match="Expected finite batches from PerSample but got other values"):
        ready(numbered(num_clients=4, transform=PerSample()))


def test_data_with_a_single_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 classes in the data of TensorData but got 1"):
        ready(numbered(num_classes=1, num_clients=4))


def uneven(**changes: Any) -> TensorData:
    """Return six clients: bob and eve have one training sample each and no test samples."""
    names = ["ann", "cat", "dan", "fay"]
    ids = [names[i % 4] for i in range(198)] + ["bob", "eve"]
    return numbered(
        train_clients=ids, test_clients=[*ids[:78], "bob", "bob"], num_clients=None, val_fraction=0.0, **changes
    )


def test_small_clients_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"but client 1 \(id 'bob'\) has 1 \(2 clients have too few\): use"):
        ready(uneven())


def test_drop_small_clients_leaves_them_out() -> None:
    with pytest.warns(UserWarning, match=r"clients 'bob', 'eve' of 6 with fewer than 2 training samples .* left out"):
        module = ready(uneven(drop_small_clients=True))
    assert module.client_names == ("ann", "cat", "dan", "fay")
    assert (module.num_clients, module.unassigned) == (4, 2)
    assert set(flat(numbers(module, "train"))) == set(range(198))
    for client in range(4):
        assert {number % 4 for number in numbers(module, "train")[client]} == {client}
        assert {number % 4 for number in numbers(module, "test")[client]} == {client}
    assert int((module.resident.test_owner < 0).sum()) == 2  # bob's samples
    assert client_table(module)["id"].tolist() == ["ann", "cat", "dan", "fay"]


def test_drop_small_clients_leaves_out_clients_of_a_partitioner() -> None:
    every = numbered(num_clients=40, partitioner=Dirichlet(0.05, min_samples=0))
    every.min_samples = 0  # the constructor refuses it
    sizes = ready(every).sizes
    assert min(sizes) < 2
    with pytest.warns(UserWarning, match="of 40 with fewer than 2 training samples"):
        module = ready(numbered(num_clients=40, partitioner=Dirichlet(0.05, min_samples=0), drop_small_clients=True))
    assert module.sizes == tuple(size for size in sizes if size >= 2)
    assert numbers(module, "train") == [part for part in numbers(every, "train") if len(part) >= 2]


def test_data_with_small_clients_only_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"at least 500 training samples .* but the largest of 6 has 50"):
        ready(uneven(drop_small_clients=True, min_samples=500))


def test_the_summary_names_clients_without_test_samples_and_clients_of_one_class() -> None:
    module = ready(uneven(min_samples=1))
    assert module.summary().endswith(
        "80 test, without test samples: client 4 ('eve'), of one class: clients 1 ('bob'), 4 ('eve')"
    )


def test_there_is_no_second_loader_without_test_samples_of_clients() -> None:
    module = ready(numbered(train_clients=["a", "b"] * 100, test_clients=["c"] * 80, num_clients=None))
    assert len(module.val_dataloader()) == 1
