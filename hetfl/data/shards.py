"""Label shards: every client has a few classes (HeteroFL, Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264)."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.data.partition import Partitioner
from hetfl.errors import ConfigurationError


class LabelShards(Partitioner):
    """At most ``labels_per_client`` classes per client: the paper's "non-iid-n".

    Each of the K classes that occur is cut, in file order, into ``n N / K`` shards. A list with every class that many
    times is shuffled and dealt out, n to a client; of each of its classes a client draws one of the shards that are
    left. As in the authors' code a client that is dealt the same class twice takes **one** shard of it and the other is
    nobody's: with N=100, K=10, n=2 that happens to P = 19/199 = 9.5 % of the clients. The data module reports how many
    samples that leaves out.

    Args:
        labels_per_client: n.
    """

    def __init__(self, labels_per_client: int) -> None:
        if labels_per_client < 1:
            raise ConfigurationError(f"Expected labels_per_client of at least 1 but got {labels_per_client}")
        self.labels_per_client = labels_per_client

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its shards, one shard after the other.

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
        return [torch.cat([shards[c].pop() for c in sorted(set(own))]) for own in dealt.view(num_clients, -1).tolist()]


def cut(labels: Tensor, label: int, num_shards: int) -> list[Tensor]:
    """Return the positions of one class as shards of equal size, in file order.

    What is left over stands at the end of the file order and goes, one each, to the first shards.
    """
    positions = (labels == label).nonzero().flatten()
    size = len(positions) // num_shards
    shards, left_over = list(positions[: size * num_shards].split(size)), positions[size * num_shards :]
    return [torch.cat([shard, left_over[i : i + 1]]) for i, shard in enumerate(shards)]


def shuffled(shards: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return the shards in random order: taking the last one then is a draw from those left."""
    return [shards[i] for i in torch.randperm(len(shards), generator=generator).tolist()]
