"""Bytes between the processes of a distributed trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of a trainer, in a separate Gloo group on the CPU, for any backend of the trainer.

    All processes must make the object, and call each method, in the same order, after torch.distributed is set up.
    """

    def __init__(self) -> None:
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self.rank, self.count = self._group.rank(), self._group.size()

    def everyone(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, by rank."""
        lengths = self._lengths(len(data))
        parts = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths]
        dist.all_gather(parts, _padded(data, max(lengths)), group=self._group)
        return _cut(parts, lengths)

    def at_zero(self, data: bytes) -> list[bytes]:
        """Return on rank zero the bytes of every rank, by rank; on others an empty list."""
        lengths = self._lengths(len(data))
        parts = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths] if self.rank == 0 else None
        dist.gather(_padded(data, max(lengths)), parts, dst=0, group=self._group)
        return [] if parts is None else _cut(parts, lengths)

    def from_zero(self, parts: Sequence[bytes]) -> bytes:
        """Return the bytes that rank zero sends to this rank.

        Args:
            parts: on rank zero, the bytes by rank; ignored on others.
        """
        zero = self.rank == 0
        lengths = torch.tensor([len(part) for part in parts] if zero else [0] * self.count)
        dist.broadcast(lengths, src=0, group=self._group)
        longest = int(lengths.max())
        mine = torch.empty(longest, dtype=torch.uint8)
        dist.scatter(mine, [_padded(part, longest) for part in parts] if zero else None, src=0, group=self._group)
        return mine[: int(lengths[self.rank])].numpy().tobytes()

    def _lengths(self, length: int) -> list[int]:
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([length]), group=self._group)
        return [int(each) for each in lengths]


def _padded(data: bytes, length: int) -> Tensor:
    padded = torch.zeros(length, dtype=torch.uint8)
    padded[: len(data)] = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    return padded


def _cut(parts: Sequence[Tensor], lengths: Sequence[int]) -> list[bytes]:
    return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]
