"""Any map-style data set."""

from __future__ import annotations

import operator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from hetfl.data.arrays import ArrayLike, Arrays, ClientData, as_tensor, client_codes
from hetfl.data.module import FederatedDataModule
from hetfl.errors import ConfigurationError


class DatasetData(FederatedDataModule):
    """Two data sets with ``len()`` and items (input, class), such as lists of pairs, read once into memory.

    Inputs may be tensors, arrays, numbers or PIL images, all of one shape. A random transform inside the data set would
    be drawn only once: augment by ``transform`` here.

    Args:
        train: the training samples.
        test: the test samples.
        num_classes: number of classes K; None: the largest class that occurs, plus 1.
        train_clients: per training sample the id of its client, a number or a text; None: the partitioner decides.
        test_clients: per test sample the id of its client; None: matched to the training samples.
        num_clients: number of clients N; None: as many as there are client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        train: Dataset[Any],
        test: Dataset[Any],
        num_classes: int | None = None,
        train_clients: ArrayLike | None = None,
        test_clients: ArrayLike | None = None,
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        self.train, self.test, self.num_labels = train, test, num_classes
        self.train_clients, self.test_clients = train_clients, test_clients

    def load(self) -> Arrays:  # noqa: D102
        train, test = _stack(self.train, "training"), _stack(self.test, "test")
        train_codes, test_codes, names = client_codes(self.train_clients, self.test_clients)
        return Arrays(train, test, self.num_labels, train_codes, test_codes, names)


def _stack(dataset: Dataset[Any], where: str) -> ClientData:
    """Return all items of a data set, inputs and classes stacked."""
    inputs: list[Tensor] = []
    targets: list[int] = []
    for position in range(_length(dataset, where)):
        item = dataset[position]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ConfigurationError(
                f"Expected {where} items (input, class) but got {type(item).__name__} at position {position}"
            )
        inputs.append(_tensor(item[0], f"the input at {where} position {position}"))
        targets.append(_class(item[1], where, position))
        if inputs[-1].shape != inputs[0].shape:
            raise ConfigurationError(
                f"Expected {where} inputs of one shape, {tuple(inputs[0].shape)}, "
                f"but got {tuple(inputs[-1].shape)} at position {position}"
            )
    return ClientData(torch.stack(inputs), torch.tensor(targets))


def _length(dataset: Dataset[Any], where: str) -> int:
    length = len(dataset) if hasattr(dataset, "__len__") else 0
    if not length:
        raise ConfigurationError(f"Expected a {where} data set with a length above 0 but got {type(dataset).__name__}")
    return length


def _class(value: Any, where: str, position: int) -> int:
    try:
        return operator.index(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"Expected a whole number as the class of each {where} item but got {value!r} at position {position}"
        ) from error


def _tensor(value: Any, where: str) -> Tensor:
    return pil_to_tensor(value) if isinstance(value, Image.Image) else as_tensor(value, where)
