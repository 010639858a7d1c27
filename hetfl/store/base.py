"""Where what belongs to a client is kept between rounds: in memory, or in one file per client and round.

Residuals of error feedback and a method's memories of its clients are vectors in global coordinates: per name of a
tensor a block, the leading extent of the global tensor that covers everything the client has held so far. So a client
that is always at a small level costs what its sub-model costs. Blocks are on the CPU and are never modified in place: a
checkpoint may refer to them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.submodel import extent, fixed, index_layout, put, take
from hetfl.types import Index, IndexEntry

HEAD = 1 << 10
"""Entries of a block that are looked at first."""


class ClientStore(ABC):
    """A vector per client in global coordinates; it is zero wherever nothing was written."""

    @abstractmethod
    def load(self, client: int) -> dict[str, Tensor]:
        """Return the client's blocks by name, not to be modified; empty for a client without any."""

    @abstractmethod
    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten."""

    @abstractmethod
    def clients(self) -> list[int]:
        """Return the ids of clients that have blocks, ascending."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, in plain types and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""

    def named_state(self) -> dict[str, Any]:
        """Return :meth:`state_dict` with the store's class, for :meth:`load_named_state`."""
        return {"store": type(self).__name__, "kept": self.state_dict()}

    def load_named_state(self, state: Mapping[str, Any], what: str, owner: str) -> None:
        """Put back what :meth:`named_state` returned.

        Args:
            state: of a checkpoint.
            what: is kept, in a word.
            owner: the name of what it is kept for.

        Raises:
            ConfigurationError: it was kept in another kind of store.
        """
        if state["store"] != type(self).__name__:
            raise ConfigurationError(
                f"Expected the checkpoint's store of {what} ({state['store']}) for {owner} but got "
                f"{type(self).__name__}"
            )
        self.load_state_dict(state["kept"])

    def bind(self, folder: str | None) -> None:
        """Learn the folder of this run, where a store may keep files; None if it has none. By default nothing."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk. By default nothing."""

    def read(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return the client's entries at an index, shape (D,), with dtype and device of ``like``; None: all zero.

        They may share the store's memory, and are not to be modified.
        """
        blocks = self.load(client)
        if not blocks:
            return None
        parts = []
        for place in _places(index):
            block = blocks.get(place.name)
            if block is None:
                parts.append(torch.zeros(place.size, dtype=like.dtype))
            elif place.leads and block.shape == place.shape:
                parts.append(block.reshape(-1))
            else:
                parts.append(take(_grown(block, place.shape), place.entry).reshape(-1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(like)

    def write(
        self, client: int, index: Index, vector_D: Tensor, round: int, *, outside: float = 1.0
    ) -> dict[str, Tensor]:
        """Replace the client's entries at an index as of a round; return all of its blocks.

        Entries outside the index are multiplied by ``outside``; a block that is zero everywhere is dropped.
        """
        vector_D = vector_D.cpu()
        blocks = self.load(client)
        if outside != 1:
            blocks = {name: block * outside for name, block in blocks.items()}
        if not blocks and not bool(vector_D.any()):
            return {}
        written = dict(blocks)
        parts = index_layout(index).views(vector_D).values()
        for place, part in zip(_places(index), parts, strict=True):
            block = blocks.get(place.name)
            if place.leads and (block is None or block.shape == place.shape):
                # A copy of its own: a view would keep all of the vector, also in checkpoints, for as long as it stays.
                written[place.name] = part.clone()
                continue
            written[place.name] = part.new_zeros(place.shape) if block is None else _grown(block, place.shape).clone()
            put(written[place.name], place.entry, part)
        written = _without_zeros(written)
        self.save(client, written, round)
        return written


class MemoryStore(ClientStore):
    """In memory, and whole in the checkpoint."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Tensor]] = {}

    def load(self, client: int) -> dict[str, Tensor]:  # noqa: D102
        return dict(self._blocks.get(client, {}))

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:  # noqa: D102
        self._blocks.pop(client, None)
        if blocks:
            self._blocks[client] = dict(blocks)

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._blocks)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"blocks": {client: self.load(client) for client in self.clients()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._blocks = {client: dict(blocks) for client, blocks in state["blocks"].items()}


@dataclass(frozen=True)
class _Place:
    """Where an index addresses one tensor.

    Attributes:
        name: of the tensor.
        entry: on the CPU.
        size: number of entries.
        shape: of the smallest leading block that covers them.
        leads: whether they are all of that block.
    """

    name: str
    entry: IndexEntry
    size: int
    shape: tuple[int, ...]
    leads: bool


def _places(index: Index) -> list[_Place]:
    kept = fixed(index)
    return kept.derived("places", lambda: [_place(*item) for item in kept.items()])


def _place(name: str, entry: IndexEntry) -> _Place:
    entry = tuple(part if isinstance(part, slice) else part.cpu() for part in entry)
    shape = extent(entry)
    size = math.prod(part.stop - part.start if isinstance(part, slice) else part.numel() for part in entry)
    leads = all(isinstance(part, slice) and part.start == 0 for part in entry)
    return _Place(name, entry, size, shape, leads)


def _without_zeros(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the blocks that are not zero everywhere."""
    filled = {name: block for name, block in blocks.items() if block.numel()}
    if not filled:
        return {}
    # As a rule the first entries tell, of all blocks in one call.
    heads = [block.flatten()[:HEAD] for block in filled.values()]
    largest = torch.stack(torch._foreach_norm(heads, ord=math.inf)).tolist()
    found = zip(filled.items(), largest, strict=True)
    return {name: block for (name, block), most in found if most != 0 or (block.numel() > HEAD and bool(block.any()))}


def _grown(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a block with zeros up to ``shape`` where it is smaller; the block itself if it is nowhere."""
    if all(has >= size for has, size in zip(block.shape, shape, strict=True)):
        return block
    wanted = [max(sizes) for sizes in zip(block.shape, shape, strict=True)]
    grown = block.new_zeros(wanted)
    grown[tuple(slice(size) for size in block.shape)] = block
    return grown
