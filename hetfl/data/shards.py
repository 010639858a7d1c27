"""Label shards: each client has few classes (HeteroFL, Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264)."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.data.partition import Partitioner
from hetfl.errors import ConfigurationError


class LabelShards(Partitioner):
    """At most ``labels_per_client`` classes per client: the setting "non-iid-n" of the paper.

    Each of the K classes that occur is cut, in file order, into ``n N / K`` shards. A list with ``n N / K`` copies of
    every class is shuffled, and each client gets n entries of it. For each of its classes a client draws one of the
    remaining shards. As in the authors' code, a client that gets the same class twice takes only **one** shard of it,
    and the other shard belongs to no client. With N=100, K=10, n=2 this happens to 19/199 = 9.5 % of the clients on
    average. The data module reports the number of unused samples.

    Args:
        labels_per_client: number of classes n.

    Raises:
        ConfigurationError: ``labels_per_client`` is below 1.
    """

    def __init__(self, labels_per_client: int) -> None:
        if labels_per_client < 1:
            raise ConfigurationError(f"Expected labels_per_client of at least 1 but got {labels_per_client}")
        self.labels_per_client = labels_per_client

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, shard by shard.

        Raises:
            ConfigurationError: the number of shards is not a multiple of the number of classes, or a class has fewer
                samples than shards.
        """
        classes, counts = labels.unique(return_counts=True)
        per_class, rest = divmod(self.labels_per_client * num_clients, len(classes))
        if rest:
            raise ConfigurationError(
                f"Expected labels_per_client * num_clients to be a multiple of the {len(classes)} classes "
                f"but got {self.labels_per_client} * {num_clients}"
            )
        if int(counts.min()) < per_class:
            raise ConfigurationError(
                f"Expected at least {per_class} samples of every class, one per shard (LabelShards), "
                f"but class {int(classes[counts.argmin()])} has {int(counts.min())}"
            )
        dealt = classes.repeat(per_class)[torch.randperm(per_class * len(classes), generator=generator)]
        shards = {int(c): shuffled(cut(labels, int(c), per_class), generator) for c in classes}
        hands = dealt.view(num_clients, -1).tolist()
        return [torch.cat([shards[c].pop() for c in sorted(set(hand))]) for hand in hands]


def cut(labels: Tensor, label: int, num_shards: int) -> list[Tensor]:
    """Return the positions of one class as shards of equal size, in file order.

    The remainder, the last samples in file order, goes to the first shards, one sample to each.
    """
    positions = (labels == label).nonzero().flatten()
    size = len(positions) // num_shards
    shards, left_over = list(positions[: size * num_shards].split(size)), positions[size * num_shards :]
    return [torch.cat([shard, left_over[i : i + 1]]) for i, shard in enumerate(shards)]


def shuffled(shards: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return the shards in random order, so that ``pop`` draws a random shard."""
    return [shards[i] for i in torch.randperm(len(shards), generator=generator).tolist()]
