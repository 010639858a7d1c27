"""Data sets whose inputs are the numbers of the samples."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch

from hetfl.data import FederatedDataModule, TensorData

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def numbered(num_train: int = 200, num_test: int = 80, num_classes: int = 5, **arguments: Any) -> TensorData:
    """Return a data set whose inputs are sample numbers: 0, 1, … for training and 1000, 1001, … for testing."""
    return TensorData(
        train_inputs=torch.arange(num_train).float()[:, None],
        train_targets=torch.arange(num_train) * 7 % num_classes,
        test_inputs=1000 + torch.arange(num_test).float()[:, None],
        test_targets=torch.arange(num_test) % num_classes,
        **arguments,
    )


def ready(module: FederatedDataModule) -> FederatedDataModule:
    module.setup("fit")
    return module


def numbers(module: FederatedDataModule, split: Literal["train", "test"]) -> list[list[int]]:
    return [module.client_data(k, split).inputs[:, 0].int().tolist() for k in range(module.num_clients)]


def flat(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))
