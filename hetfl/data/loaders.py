"""What Lightning iterates over: the round, and batches for evaluation."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from hetfl.data.arrays import ClientData
from hetfl.tree import Tree, taken

T = TypeVar("T")


class EvalBatch(NamedTuple):
    """Samples to evaluate on.

    Attributes:
        inputs: raw, shape (N, ...) or a tree of such: the transform is the module's to apply.
        targets: int64, shape (N,).
        owner: int64, shape (N,): the client whose sample it is, or -1.
    """

    inputs: Tree
    targets: Tensor
    owner: Tensor


class OneRound(Dataset[int]):
    """The only item of a training epoch: a place for the round to happen in, without data."""

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


def round_loader() -> DataLoader[int]:
    """Return a loader with exactly one item."""
    return _on_every_rank(OneRound())


def eval_loader(data: ClientData, batch_size: int, owner: Tensor | None = None) -> DataLoader[EvalBatch]:
    """Return a loader of whole batches; without ``owner`` every sample is nobody's."""
    owner = torch.full_like(data.targets, -1) if owner is None else owner
    return _on_every_rank(EvalBatches(data, owner, batch_size))


def _on_every_rank(items: Dataset[T]) -> DataLoader[T]:
    """Return a loader that yields all items in order, in every process of a distributed trainer.

    Lightning leaves loaders with this kind of sampler alone; else it would divide the items and repeat some.
    """
    sampler: DistributedSampler[int] = DistributedSampler(items, num_replicas=1, rank=0, shuffle=False)
    # batch_size=None: an item is a batch already; slicing in this process is faster than any worker.
    return DataLoader(items, batch_size=None, sampler=sampler, num_workers=0)
