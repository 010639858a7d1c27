"""The base class of partitioners, and two simple ones: equal shares at random, and by the client ids of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError


class Partitioner(ABC):
    """Divides the training samples among the clients; each sample goes to at most one client.

    Subclasses define :meth:`partition`. A subclass that divides by the client ids of the data sets ``by_client_id``,
    and its ``labels`` are then client codes instead of classes.
    """

    by_client_id: ClassVar[bool] = False
    by_class: ClassVar[bool] = True
    """Whether the rule uses classes; such a rule is refused for data without classes."""

    def __call__(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples.

        Args:
            labels: int64, shape (n,): the class of each sample.
            num_clients: number of clients N.
            generator: source of every random choice.

        Raises:
            ConfigurationError: there are more clients than samples, no client, or the rule cannot be followed.
        """
        if not 1 <= num_clients <= len(labels):
            raise ConfigurationError(
                f"Expected 1 client to {len(labels)}, the number of samples, but got num_clients={num_clients}"
            )
        return self.partition(labels, num_clients, generator)

    @abstractmethod
    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples; ``1 <= num_clients <= len(labels)`` holds."""


class IID(Partitioner):
    """Equal shares at random.

    HeteroFL gives every client ``n div N`` samples and drops the remainder. Here the first ``n mod N`` clients get one
    more sample, so that no sample is lost.
    """

    by_class: ClassVar[bool] = False

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:  # noqa: D102
        return list(torch.randperm(len(labels), generator=generator).tensor_split(num_clients))


class NaturalIds(Partitioner):
    """The clients of the data (writers, hospitals): client k has the samples of the k-th id in sorted order."""

    by_client_id: ClassVar[bool] = True
    by_class: ClassVar[bool] = False

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples; ``labels`` holds the client of each sample, in [0, N).

        Raises:
            ConfigurationError: a client id is out of range.
        """
        if int(labels.min()) < 0 or int(labels.max()) >= num_clients:
            raise ConfigurationError(
                f"Expected client ids in [0, {num_clients}) but got {int(labels.min())} to {int(labels.max())}"
            )
        return positions_by_owner(labels, num_clients)


def positions_by_owner(owners: Tensor, num_clients: int) -> list[Tensor]:
    """Return per client the positions that it owns, ascending; an owner of -1 means no client.

    >>> positions_by_owner(torch.tensor([1, -1, 0, 1]), 2)
    [tensor([2]), tensor([0, 3])]
    """
    order = owners.argsort(stable=True)
    sizes = owners[owners >= 0].bincount(minlength=num_clients).tolist()
    return list(order[len(owners) - sum(sizes) :].split(sizes))


def class_counts(labels: Tensor, parts: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return how many samples of each class each client has, int64, shape (N, K)."""
    owners = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    cells = owners * num_classes + labels[torch.cat(list(parts))]
    return cells.bincount(minlength=len(parts) * num_classes).view(len(parts), num_classes)
