"""Training data without some classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetfl.data.arrays import ClientData
from hetfl.data.resident import Resident
from hetfl.errors import ConfigurationError
from hetfl.objectives import Objective
from hetfl.tree import divided, taken


def without_classes(
    resident: Resident, classes: Sequence[int], objective: Objective, min_samples: int
) -> tuple[Resident, Tensor]:
    """Return a data set whose training, held-out and server samples have none of some classes, and who still has data.

    Every other sample stays with its client. Clients with fewer than ``min_samples`` training samples are left out; the
    clients after them move up, and their test samples belong to no client. The test set keeps all classes. A class that
    is left out counts as a label of every client: a loss over the labels of a client then still moves its output down.

    Args:
        resident: the data set after its split.
        classes: the classes that are left out.
        objective: what the targets are.
        min_samples: smallest number of training samples of a client.

    Returns:
        The data set, and the numbers of the clients in ``resident`` that stay, ascending.

    Raises:
        ConfigurationError: targets are not one class per sample, a class is unknown, or nothing is left to train on.
    """
    num_classes = _number_of_classes(resident, classes, objective)
    out = torch.tensor(sorted(set(classes)), dtype=torch.int64)

    def staying(data: ClientData) -> Tensor:
        labels = objective.single_labels(data.targets)
        assert labels is not None
        return (~torch.isin(labels, out)).nonzero().flatten()

    train = [_rows(data, staying(data)) for data in resident.train]
    kept = torch.tensor([client for client, data in enumerate(train) if len(data) >= min_samples], dtype=torch.int64)
    if not len(kept) or len(out) == num_classes:
        raise ConfigurationError(
            f"Expected a client with at least {min_samples} training samples (min_samples) of other classes than "
            f"{out.tolist()} but got none"
        )
    numbers = torch.full((len(train) + 1,), -1)  # the last entry stands for samples of no client
    numbers[kept] = torch.arange(len(kept))
    test, all_test, test_owner = _tests(resident, numbers, len(kept))
    held_out, labels = staying(resident.validation), resident.labels[kept].clone()
    labels[:, out] = True
    own = [resident.held_out[client] for client in kept.tolist()] if resident.held_out else []
    whole = replace(
        resident,
        train=tuple(train[client] for client in kept.tolist()),
        test=test,
        all_test=all_test,
        test_owner=test_owner,
        validation=_rows(resident.validation, held_out),
        validation_owner=numbers[resident.validation_owner][held_out],
        labels=labels,
        server=_rows(resident.server, staying(resident.server)),
        held_out=tuple(_rows(each, staying(each)) for each in own),
        changed_as=tuple(resident.changed_as[client] for client in kept.tolist()),
    )
    return whole, kept


def _number_of_classes(resident: Resident, classes: Sequence[int], objective: Objective) -> int:
    """Return the number of classes of a data set, some of which can be left out."""
    num_classes = resident.labels.shape[1]
    if objective.single_labels(resident.all_test.targets) is None:
        raise ConfigurationError(
            f"Expected samples of one class each, to leave classes out, but got those of {type(objective).__name__}"
        )
    if unknown := [k for k in classes if not 0 <= k < num_classes]:
        raise ConfigurationError(f"Expected classes from 0 to {num_classes - 1} to leave out but got {unknown[0]}")
    return num_classes


def _tests(resident: Resident, numbers: Tensor, kept: int) -> tuple[tuple[ClientData, ...], ClientData, Tensor]:
    """Return the test samples of each client, all test samples by client, and their clients, -1 for none.

    Args:
        resident: the data set.
        numbers: the new number of each old client, -1 for none; the last entry is -1.
        kept: number of clients.
    """
    test_owner = numbers[resident.test_owner]
    order = torch.where(test_owner < 0, kept, test_owner).argsort(stable=True)
    all_test, test_owner = _rows(resident.all_test, order), test_owner[order]
    sizes = test_owner[test_owner >= 0].bincount(minlength=kept).tolist()
    tests = map(ClientData, divided(all_test.inputs, sizes), all_test.targets[: sum(sizes)].split(sizes))
    return tuple(tests), all_test, test_owner


def _rows(data: ClientData, rows: Tensor) -> ClientData:
    return ClientData(taken(data.inputs, rows), data.targets[rows])
