"""A data set in memory: what a data module loads, and what a client gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError


@dataclass(frozen=True)
class ClientData:
    """Samples as they lie in memory, before any transform.

    Attributes:
        inputs: shape (n, ...), uint8 images (n, C, height, width) or float features.
        targets: int64, shape (n,): class numbers.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.targets.numel()


@dataclass(frozen=True)
class Arrays:
    """A whole data set, as :meth:`hetfl.data.FederatedDataModule.load` returns it.

    Attributes:
        train: the training samples, from which validation samples are held out.
        test: the test samples, never used for choosing anything.
        num_classes: number of classes K.
        train_clients: int64, the id of each training sample's client, where the data knows it.
        test_clients: the same for the test samples.

    Raises:
        ConfigurationError: lengths, shapes, types or class numbers don't fit together.
    """

    train: ClientData
    test: ClientData
    num_classes: int
    train_clients: Tensor | None = None
    test_clients: Tensor | None = None

    def __post_init__(self) -> None:
        _check_samples(self.train, self.train_clients, self.num_classes, "training")
        _check_samples(self.test, self.test_clients, self.num_classes, "test")
        if self.train.inputs.shape[1:] != self.test.inputs.shape[1:]:
            raise ConfigurationError(
                f"Expected test inputs of shape {tuple(self.train.inputs.shape[1:])}, like the training inputs, "
                f"but got {tuple(self.test.inputs.shape[1:])}"
            )


def _check_samples(data: ClientData, clients: Tensor | None, num_classes: int, where: str) -> None:
    inputs, targets = data.inputs, data.targets
    if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
        raise ConfigurationError(f"Expected {where} inputs as uint8 or floats but got {inputs.dtype}")
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise ConfigurationError(
            f"Expected {where} targets as int64 of shape (n,) but got {targets.dtype} {tuple(targets.shape)}"
        )
    if not 0 < len(inputs) == len(targets):
        raise ConfigurationError(
            f"Expected as many {where} inputs as targets, at least one, but got {len(inputs)} and {len(targets)}"
        )
    if int(targets.min()) < 0 or int(targets.max()) >= num_classes:
        raise ConfigurationError(
            f"Expected {where} targets in [0, {num_classes}) but got {int(targets.min())} to {int(targets.max())}"
        )
    if clients is not None and clients.shape != targets.shape:
        raise ConfigurationError(
            f"Expected one client id per {where} sample ({len(targets)}) but got shape {tuple(clients.shape)}"
        )


def client_codes(
    train_ids: Sequence[int] | Sequence[str] | None, test_ids: Sequence[int] | Sequence[str] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return client ids as int64 codes: the position among all distinct ids, sorted; None stays None.

    >>> client_codes(["bob", "ann", "bob"], ["ann"])
    (tensor([1, 0, 1]), tensor([0]))
    """
    codes = {name: code for code, name in enumerate(sorted({*(train_ids or ()), *(test_ids or ())}))}
    train, test = (
        None if ids is None else torch.tensor([codes[name] for name in ids], dtype=torch.int64)
        for ids in (train_ids, test_ids)
    )
    return train, test
