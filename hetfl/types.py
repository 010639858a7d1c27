"""The words of the design as types: levels, indices, updates, reports.

Shape suffixes used in this package: N batch, C channels, K classes, D entries of a flat parameter vector,
S clients of a cohort, T tensors of a layout.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Level:
    """What a client can afford: a width ratio and/or a depth.

    Args:
        name: the level's letter; in YAML the key of the mapping, filled in from there.
        width: hidden channels relative to the global model, in (0, 1].
        depth: number of stages; None leaves the net's own.
    """

    name: str = ""
    width: float = 1.0
    depth: int | None = None


class NetFactory(Protocol):
    """What YAML's ``net:`` gives: a class, or a class with some arguments bound, that builds the net of a level.

    It is also called with ``depth``, a number of stages, for levels that have one, and need not take what no level asks
    for. The net's output is logits (N, K), or (H, N, K) if it has H exits, the shallowest first.
    """

    def __call__(self, *, width: float = 1.0) -> nn.Module:
        """Return a freshly initialised net whose hidden channels are scaled by ``width``."""
        ...


IndexEntry = tuple[slice | Tensor, ...]
"""Which entries of one global tensor: per dimension a slice(start, stop) or a sorted LongTensor of positions."""

Index = Mapping[str, IndexEntry]
"""Per name of a parameter (then of a float buffer): the entries of the global tensor that a sub-model holds."""


@dataclass(frozen=True)
class Layout:
    """Where named tensors lie in one flat vector, in order and without gaps.

    Args:
        shapes: per name, the tensor's shape; the order is the order in the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of named tensors, in their order."""
        return Layout({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries per tensor."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes.values())

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each tensor's first entry in the flat vector."""
        return tuple(itertools.accumulate(self.sizes, initial=0))[:-1]

    @cached_property
    def size(self) -> int:
        """Length D of the flat vector."""
        return sum(self.sizes)

    def views(self, flat_D: Tensor) -> dict[str, Tensor]:
        """Return per name a view of ``flat_D`` with that tensor's shape."""
        parts = flat_D.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True)
class Update(ABC):
    """What one client sends: a compressed vector of D entries, and an exact block beside it.

    Attributes:
        exact: entries that travel uncompressed (running statistics of a net that has them); often empty.
    """

    exact: Tensor = field(default_factory=lambda: torch.empty(0), kw_only=True)

    @property
    @abstractmethod
    def size(self) -> int:
        """Length D of the vector that was compressed."""

    @property
    @abstractmethod
    def num_sent(self) -> int:
        """Number of entries whose value is in the message."""

    @abstractmethod
    def num_sent_before(self, positions: Tensor) -> Tensor:
        """Return, per position in [0, D], how many entries before it are in the message, int64 on the CPU."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """Return the vector of D entries that the server reads; entries that were not sent are 0."""

    def num_sent_per_tensor(self, layout: Layout) -> Tensor:
        """Return how many entries of each tensor are in the message: int64, shape (T,), on the CPU.

        Args:
            layout: where the tensors lie in the vector of D entries; the exact block is no part of it.

        Raises:
            ValueError: the layout is that of a vector of another length.
        """
        if layout.size != self.size:
            raise ValueError(f"Expected the layout of a vector of {self.size} entries but got one of {layout.size}")
        return self.num_sent_before(torch.tensor([*layout.offsets, layout.size])).diff()

    def with_exact(self, exact: Tensor) -> Update:
        """Return the same update with an exact block."""
        return replace(self, exact=exact)


@dataclass(frozen=True)
class DenseUpdate(Update):
    """Every entry. ``values``: shape (D,)."""

    values: Tensor

    @property
    def size(self) -> int:  # noqa: D102
        return self.values.numel()

    @property
    def num_sent(self) -> int:  # noqa: D102
        return self.values.numel()

    def num_sent_before(self, positions: Tensor) -> Tensor:  # noqa: D102
        return positions

    def to_dense(self) -> Tensor:  # noqa: D102
        return self.values


@dataclass(frozen=True)
class SparseUpdate(Update):
    """Some entries: ``indices`` (k,) int64, strictly increasing in [0, D); ``values`` (k,); ``length`` D."""

    length: int
    indices: Tensor
    values: Tensor

    @property
    def size(self) -> int:  # noqa: D102
        return self.length

    @property
    def num_sent(self) -> int:  # noqa: D102
        return self.indices.numel()

    def num_sent_before(self, positions: Tensor) -> Tensor:  # noqa: D102
        return torch.searchsorted(self.indices, positions.to(self.indices.device)).cpu()

    def to_dense(self) -> Tensor:  # noqa: D102
        return self.values.new_zeros(self.length).index_copy_(0, self.indices, self.values)


@dataclass(frozen=True)
class ClientContext:
    """What the local loss may know about the client it is computed for.

    Attributes:
        client: the client's id.
        round: the round's number, from 0.
        labels: bool, shape (K,) or (S, K) with a leading client dimension: the classes in the client's training data.
    """

    client: int
    round: int
    labels: Tensor


@dataclass(frozen=True)
class Report:
    """What a client says about its local training, beside its update.

    Attributes:
        client: the client's id.
        level: the name of the level it trained.
        num_samples: size of its training set.
        loss: mean training loss over all local steps.
        flops: floating-point operations spent, forward and backward.
    """

    client: int
    level: str
    num_samples: int
    loss: float
    flops: float


def iter_entries(index: Index) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield per name of an index the shape of the entries that it addresses."""
    for name, entry in index.items():
        yield name, tuple(part.stop - part.start if isinstance(part, slice) else part.numel() for part in entry)
