"""A fixed number of labels per client (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079, "#C = n")."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.data.partition import Partitioner, positions_by_owner
from hetfl.errors import ConfigurationError


class PathologicalLabels(Partitioner):
    """Every client has exactly ``labels_per_client`` classes, and every sample belongs to a client.

    Client i has class ``i mod K`` of the K classes that occur, and ``n - 1`` other classes drawn at random. Each class
    is shuffled and split evenly among the clients that have it. Some papers use the same name for another rule,
    :class:`~hetfl.data.LabelShards`: shards of equal size, at most n classes, and samples may be left over.

    Args:
        labels_per_client: number of classes n.

    Raises:
        ConfigurationError: ``labels_per_client`` is below 1.
    """

    def __init__(self, labels_per_client: int) -> None:
        if labels_per_client < 1:
            raise ConfigurationError(
                f"Expected labels_per_client (PathologicalLabels) of at least 1 but got {labels_per_client}"
            )
        self.labels_per_client = labels_per_client

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, ascending.

        Raises:
            ConfigurationError: there are fewer clients than classes, fewer classes than labels per client, or fewer
                samples of a class than clients that have it.
        """
        classes, counts = labels.unique(return_counts=True)
        if self.labels_per_client > len(classes):
            raise ConfigurationError(
                f"Expected labels_per_client (PathologicalLabels) of at most {len(classes)}, the number of classes, "
                f"but got {self.labels_per_client}"
            )
        if num_clients < len(classes):
            raise ConfigurationError(
                f"Expected num_clients of at least {len(classes)}, the number of classes, so that every sample has a "
                f"client (PathologicalLabels), but got {num_clients}"
            )
        has_NK = deal(num_clients, len(classes), self.labels_per_client, generator)
        owners = torch.empty_like(labels)
        for number, label in enumerate(classes.tolist()):
            holders = has_NK[:, number].nonzero().flatten()
            if len(holders) > int(counts[number]):
                raise ConfigurationError(
                    f"Expected at least {len(holders)} samples of class {label}, one for each client that has it "
                    f"(PathologicalLabels), but got {int(counts[number])}"
                )
            members = (labels == label).nonzero().flatten()
            shuffled = members[torch.randperm(len(members), generator=generator)]
            # Random order: otherwise the first clients would have one more sample of each of their classes.
            holders = holders[torch.randperm(len(holders), generator=generator)]
            for holder, share in zip(holders.tolist(), shuffled.tensor_split(len(holders)), strict=True):
                owners[share] = holder
        return positions_by_owner(owners, num_clients)


def deal(num_clients: int, num_classes: int, labels_per_client: int, generator: torch.Generator) -> Tensor:
    """Return which classes each client has, bool (N, K): class ``i mod K`` and ``n - 1`` others at random."""
    first_N = torch.arange(num_clients) % num_classes
    # A random order of the classes, in which class i mod K comes first.
    order_NK = torch.rand(num_clients, num_classes, generator=generator)
    order_NK[torch.arange(num_clients), first_N] = -1.0
    has_NK = torch.zeros(num_clients, num_classes, dtype=torch.bool)
    return has_NK.scatter_(1, order_NK.argsort(dim=1)[:, :labels_per_client], True)
