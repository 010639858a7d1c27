"""What a partitioner is, and the two plainest: at random, and by the clients that the data itself names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError


class Partitioner(ABC):
    """Shares the training samples out over the clients: no sample twice.

    Subclasses write :meth:`partition`. One that goes by the client ids in the data sets ``by_client_id``, and is given
    each sample's client in the place of its class.
    """

    by_client_id: ClassVar[bool] = False
    by_class: ClassVar[bool] = True
    """Whether the rule looks at classes; it is refused where samples have none."""

    def __call__(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples.

        Args:
            labels: int64, shape (n,): the class of each sample.
            num_clients: number of clients N.
            generator: what every random choice draws from.

        Raises:
            ConfigurationError: there are more clients than samples, no client, or the rule can't be met.
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

    HeteroFL gives every client ``n div N`` samples and drops the remainder; here the first ``n mod N`` clients get one
    sample more, so that none is lost.
    """

    by_class: ClassVar[bool] = False

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:  # noqa: D102
        return list(torch.randperm(len(labels), generator=generator).tensor_split(num_clients))


class NaturalIds(Partitioner):
    """The clients that the data names (a writer, a hospital): client k has the samples of the k-th id, ids sorted."""

    by_client_id: ClassVar[bool] = True
    by_class: ClassVar[bool] = False

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client its samples; ``labels`` holds each sample's client, in [0, N).

        Raises:
            ConfigurationError: a client id is out of range.
        """
        if int(labels.min()) < 0 or int(labels.max()) >= num_clients:
            raise ConfigurationError(
                f"Expected client ids in [0, {num_clients}) but got {int(labels.min())} to {int(labels.max())}"
            )
        return positions_by_owner(labels, num_clients)


def positions_by_owner(owners: Tensor, num_clients: int) -> list[Tensor]:
    """Return per client the positions that it owns, ascending; an owner of -1 is nobody.

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
