"""Label noise: the stated share of each client's training labels is drawn anew, and nothing else changes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from hetfl.data import ClientTransform, Digits, Dirichlet, FederatedDataModule, LabelNoise, TensorData, client_table
from hetfl.errors import ConfigurationError
from hetfl.objectives import Regression

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def ready(transform: ClientTransform | None, **changes: Any) -> FederatedDataModule:
    data = Digits(num_clients=8, partitioner=Dirichlet(0.5), client_transform=transform, server_fraction=0.1, **changes)
    data.setup("fit")
    return data


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_stated_share_of_labels_is_drawn_uniformly(share: float) -> None:
    classes, count = 5, 40_000
    clean = torch.full((count,), 3)
    noisy = LabelNoise([share]).relabel(clean, 0, 1, classes, torch.Generator().manual_seed(0))
    assert (clean == 3).all()
    wrong = noisy[noisy != 3].bincount(minlength=classes)
    assert wrong[3] == 0
    for label in (0, 1, 2, 4):  # five standard deviations of a count
        assert abs(int(wrong[label]) - share * count / classes) <= 5 * (count * share / classes) ** 0.5


def test_as_many_labels_as_the_share_says_are_replaced() -> None:
    class Impossible(LabelNoise):
        """Draws from one class that no sample has, so that every replaced label shows."""

        def relabel(self, targets: Tensor, *rest: Any) -> Tensor:
            return super().relabel(targets, rest[0], rest[1], 1, rest[3])

    for size, expected in ((1, 1), (3, 2), (10, 5), (11, 6), (1000, 500)):  # half of an odd number is rounded up
        noisy = Impossible([0.5]).relabel(torch.full((size,), 7), 0, 1, 9, torch.Generator().manual_seed(1))
        assert int((noisy == 0).sum()) == expected


def test_only_the_clients_training_labels_change() -> None:
    plain, noisy = ready(None), ready(LabelNoise([1.0, 0.5, 0.0]))
    for client in range(8):
        for split in SPLITS:
            before, after = plain.client_data(client, split), noisy.client_data(client, split)
            assert torch.equal(before.inputs, after.inputs)
            changed = float((before.targets != after.targets).double().mean())
            share = [1.0, 0.5, 0.0][client % 3] * (split == "train")
            assert changed <= share
            assert (changed > 0) == (share > 0)
        assert noisy.labels(client).nonzero().flatten().tolist() == noisy.client_data(client).targets.unique().tolist()
    for part in ("validation", "all_test", "server"):
        assert torch.equal(getattr(plain.resident, part).targets, getattr(noisy.resident, part).targets)
    assert (noisy.resident.validation_owner >= 0).all()
    again, other = ready(LabelNoise([1.0, 0.5, 0.0])), ready(LabelNoise([1.0, 0.5, 0.0]), seed=1)
    assert torch.equal(noisy.client_data(0).targets, again.client_data(0).targets)
    assert not torch.equal(noisy.client_data(0).targets[:9], other.client_data(0).targets[:9])


def test_drawn_shares_are_uniform_and_described() -> None:
    noise = LabelNoise(between=(0.2, 0.6))
    shares = torch.tensor([noise.share(client, 4000) for client in range(0, 4000, 4)])
    assert [float(shares.min()), float(shares.max())] == pytest.approx([0.2, 0.6], abs=0.01)
    assert float(shares.mean()) == pytest.approx(0.4, abs=0.02)
    table = client_table(ready(LabelNoise([0.5, 0.0])))
    assert table["change"].tolist() == ["50 % random labels", "clean"] * 4


def test_inputs_of_several_tensors_can_have_noisy_labels() -> None:
    """Only transforms of inputs need a single tensor of numbers."""
    inputs = {"tokens": torch.zeros(60, 4, dtype=torch.int64), "mask": torch.ones(60, 4, dtype=torch.bool)}
    targets = torch.arange(60) % 3
    data = TensorData(
        train_inputs=inputs, train_targets=targets, test_inputs={name: each[:9] for name, each in inputs.items()},
        test_targets=targets[:9], num_clients=3, client_transform=LabelNoise([1.0]),
    )  # fmt: skip
    data.setup()
    assert data.sizes == (18, 18, 18)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Expected shares or between for LabelNoise but got neither"),
        ({"shares": [0.1], "between": (0, 1)}, "but got both"),
        ({"shares": []}, r"Expected shares in \[0, 1\], .* but got \[\]"),
        ({"shares": [0.5, 1.5]}, r"Expected shares in \[0, 1\], .* but got \[0.5, 1.5\]"),
        ({"shares": [float("nan")]}, r"Expected shares in \[0, 1\]"),
        ({"between": (0.6, 0.2)}, r"and rising bounds, for LabelNoise but got \[0.6, 0.2\]"),
    ],
)
def test_wrong_shares_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LabelNoise(**settings)


def test_targets_that_are_not_classes_and_wrong_labels_are_refused() -> None:
    numbers = TensorData(
        train_inputs=torch.zeros(20, 4), train_targets=torch.arange(20.0), test_inputs=torch.zeros(8, 4),
        test_targets=torch.arange(8.0), num_clients=2, client_transform=LabelNoise([0.5]), objective=Regression(),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="one class each for client_transform LabelNoise .* of Regression"):
        numbers.setup()

    class Short(LabelNoise):
        def relabel(self, targets: Tensor, *rest: Any) -> Tensor:
            return targets[1:]

    with pytest.raises(ConfigurationError, match=r"Expected torch.int64 labels of shape .* from Short .* for client 0"):
        ready(Short([0.5]))
