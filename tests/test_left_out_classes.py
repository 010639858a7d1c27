"""Classes that are left out of the training data: who keeps which samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hetfl.data import Digits, FeatureNoise, LabelNoise, LabelShards, TensorData, client_table
from hetfl.errors import ConfigurationError
from hetfl.objectives import Regression
from hetfl.trainer.writing import _data_rows
from tests.data_cases import SPLITS, numbered, numbers, ready

OUT = 3


def test_every_other_sample_stays_with_its_client() -> None:
    before, after = ready(numbered(num_clients=6)), ready(numbered(num_clients=6, left_out_classes=[OUT]))
    for split in SPLITS:
        labels = [before.client_data(client, split).targets.tolist() for client in range(6)]
        rows = zip(numbers(before, split), labels, strict=True)
        kept = [[n for n, k in zip(of, ks, strict=True) if split == "test" or k != OUT] for of, ks in rows]
        assert numbers(after, split) == kept
    assert OUT in before.resident.validation.targets
    assert OUT not in after.resident.validation.targets
    assert after.labels(0)[OUT]
    assert after.num_classes == 5
    assert after.sizes == tuple(map(len, numbers(after, "train")))


def test_clients_without_other_classes_are_left_out() -> None:
    given: dict[str, Any] = {"num_clients": 10, "partitioner": LabelShards(1), "val_fraction": 0.2}
    before = ready(numbered(**given, client_transform=FeatureNoise(0.1)))
    with pytest.warns(UserWarning, match="TensorData: clients ., . with fewer than 2 training samples"):
        after = ready(numbered(**given, client_transform=FeatureNoise(0.1), left_out_classes=[OUT]))
    kept = [k for k in range(10) if OUT not in before.client_data(k).targets]
    assert len(kept) == 8
    for new, old in enumerate(kept):
        for split in SPLITS:
            torch.testing.assert_close(after.client_data(new, split).inputs, before.client_data(old, split).inputs)
    owned = [client for client in range(8) for _ in after.client_data(client, "test").targets]
    assert after.resident.test_owner.tolist() == owned + [-1] * (80 - len(owned))
    owners = before.resident.validation_owner[before.resident.validation.targets != OUT]
    assert after.resident.validation_owner.tolist() == [kept.index(k) if k in kept else -1 for k in owners.tolist()]


def test_clients_that_move_up_keep_the_change_of_their_samples() -> None:
    noise = LabelNoise(between=(0.1, 0.9))
    given: dict[str, Any] = {"num_clients": 10, "partitioner": LabelShards(1), "val_fraction": 0.2}
    before = ready(numbered(**given, client_transform=noise))
    few = 1 + min(int((before.client_data(k).targets != OUT).sum()) for k in range(10))
    with pytest.warns(UserWarning, match="are left out"):
        after = ready(numbered(**given, client_transform=noise, left_out_classes=[OUT], min_samples=few))
    own = [before.client_data(k).targets[before.client_data(k).targets != OUT].tolist() for k in range(10)]
    kept = [own.index(after.client_data(k).targets.tolist()) for k in range(after.num_clients)]
    assert kept != list(range(len(kept)))
    assert client_table(after)["change"].tolist() == [client_table(before)["change"][k] for k in kept]
    assert [row[-1] for row in _data_rows(after)] == [noise.amount(k, 10) for k in kept]


@pytest.mark.parametrize(
    ("classes", "message"),
    [([5], "Expected classes from 0 to 4 to leave out but got 5"), ([0, 1, 2, 3, 4], "of other classes than")],
)
def test_classes_that_cannot_be_left_out_are_refused(classes: list[int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ready(numbered(num_clients=4, left_out_classes=classes))


def test_targets_without_classes_are_refused() -> None:
    inputs, targets = torch.rand(40, 2), torch.rand(40, 1)
    train: dict[str, Any] = {"train_inputs": inputs, "train_targets": targets}
    samples = {**train, "test_inputs": inputs, "test_targets": targets}
    data = TensorData(**samples, num_clients=4, objective=Regression(), left_out_classes=[0])
    with pytest.raises(ConfigurationError, match="one class each, to leave classes out, but got those of Regression"):
        data.setup()


def test_the_test_set_keeps_all_classes() -> None:
    data = ready(Digits(num_clients=5, left_out_classes=[OUT]))
    assert data.resident.all_test.targets.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert OUT in data.client_data(0, "test").targets
