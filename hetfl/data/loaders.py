"""The loaders that Lightning iterates over: the round, and batches for evaluation."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from hetfl.data.arrays import ClientData
from hetfl.tree import Tree, taken

T = TypeVar("T")

MOST_OUTPUTS = 1 << 24
"""The most outputs of an evaluation batch: 64 MiB of float32. An objective may take twice this for float64 as well."""


class EvalBatch(NamedTuple):
    """A batch of samples for evaluation.

    Attributes:
        inputs: raw inputs, shape (N, ...), or a tree of such tensors; the module applies the transform.
        targets: shape (N, ...), as the objective takes them.
        owner: int64, shape (N,): the client that has the sample, or -1.
    """

    inputs: Tree
    targets: Tensor
    owner: Tensor


class OneRound(Dataset[int]):
    """A data set with one item and no data: Lightning's one training batch of an epoch, which is the round."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> int:
        return range(1)[position]


class EvalBatches(Dataset[EvalBatch]):
    """Consecutive slices of tensors in memory.

    Args:
        data: the samples.
        owner: int64, shape (n,): the client of each sample, or -1.
        batch_size: samples in a batch; the last may be smaller.
    """

    def __init__(self, data: ClientData, owner: Tensor, batch_size: int) -> None:
        self.data, self.owner, self.batch_size = data, owner, batch_size

    def __len__(self) -> int:
        return -(-len(self.owner) // self.batch_size)

    def __getitem__(self, position: int) -> EvalBatch:
        start = range(len(self))[position] * self.batch_size
        part = slice(start, start + self.batch_size)
        return EvalBatch(taken(self.data.inputs, part), self.data.targets[part], self.owner[part])


def evaluation_batch(most: int, outputs: int) -> int:
    """Return how many samples are evaluated together, at least 1.

    Args:
        most: the most samples.
        outputs: of a net for one sample, such as tokens times vocabulary.

    >>> evaluation_batch(1000, 10), evaluation_batch(1000, 64 * 10_000)
    (1000, 26)
    """
    return max(1, min(most, MOST_OUTPUTS // max(outputs, 1)))


def round_loader() -> DataLoader[int]:
    """Return a loader with exactly one item."""
    return _on_every_rank(OneRound())


def eval_loader(data: ClientData, batch_size: int, owner: Tensor | None = None) -> DataLoader[EvalBatch]:
    """Return a loader of whole batches; without ``owner`` no sample belongs to a client."""
    owner = torch.full_like(data.targets, -1) if owner is None else owner
    return _on_every_rank(EvalBatches(data, owner, batch_size))


def _on_every_rank(items: Dataset[T]) -> DataLoader[T]:
    """Return a loader that yields all items in order, in every process of a distributed trainer.

    Lightning does not replace a ``DistributedSampler``. Otherwise it would divide the items over processes and repeat
    some of them.
    """
    sampler: DistributedSampler[int] = DistributedSampler(items, num_replicas=1, rank=0, shuffle=False)
    # batch_size=None: an item already is a batch. num_workers=0: slicing is faster than the transfer from a worker.
    return DataLoader(items, batch_size=None, sampler=sampler, num_workers=0)
