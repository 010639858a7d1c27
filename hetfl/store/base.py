"""Where what belongs to a client is kept between rounds: in memory, or in one file per client and round.

Residuals of error feedback and a method's memories of its clients are vectors in global coordinates: per name of a
tensor a block, the leading extent of the global tensor that covers everything the client has held so far. So a client
that is always at a small level costs what its sub-model costs. Blocks are on the CPU. What a store has handed out is
good until the client is written to again: a round's residual goes where the last one was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.store.blocks import Blocks


class ClientStore(ABC):
    """A vector per client in global coordinates; it is zero wherever nothing was written."""

    @abstractmethod
    def load(self, client: int) -> Mapping[str, Tensor]:
        """Return the client's blocks by name, not to be modified; empty for a client without any.

        They may share the store's memory: copy what has to outlast the client's next :meth:`write`.
        """

    @abstractmethod
    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten.

        The store may keep the tensors themselves; it copies them before it writes.
        """

    @abstractmethod
    def clients(self) -> list[int]:
        """Return the ids of clients that have blocks, ascending."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, in plain types and tensors: as with modules, references to what is there."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; it is copied."""

    def describe(self) -> str:
        """Return the kind of store: a checkpoint cannot be taken into another kind."""
        return type(self).__name__

    def bind(self, folder: str | None) -> None:
        """Learn the folder of this run, where a store may keep files; None if it has none. By default nothing."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk. By default nothing."""

    def read(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return the client's entries at an index, shape (D,), with dtype and device of ``like``; None: all zero.

        They may share the store's memory: they are not to be modified, and good until the client's next :meth:`write`.
        """
        blocks = self.load(client)
        return Blocks.of(blocks, like.dtype).at(index).to(like.device) if blocks else None

    def write(self, client: int, index: Index, vector_D: Tensor, round: int, *, outside: float = 1.0) -> Blocks:
        """Replace the client's entries at an index as of a round; return all of its blocks.

        Entries outside the index are multiplied by ``outside``; a client whose entries are all zero is forgotten.

        Args:
            client: the client's id.
            index: where.
            vector_D: the values, shape (D,); copied.
            round: the round's number.
            outside: factor.

        Raises:
            ValueError: there are more values, or fewer, than the index has entries; nothing is written.
        """
        if vector_D.shape != (size := part_of(index).size,):
            raise ValueError(f"Expected {size} entries of client {client} but got shape {tuple(vector_D.shape)}")
        vector_D, loaded = vector_D.cpu(), self.load(client)
        before = Blocks.of(loaded, vector_D.dtype)
        written = before.replaced(index, vector_D, outside, reuse=before is not loaded or self._owns(client))
        if written.are_zero():
            written = Blocks.of({}, vector_D.dtype)
        if before or written:
            self.save(client, written, round)
        return written

    def _owns(self, client: int) -> bool:
        """Return whether the client's blocks lie in memory that may be written to. By default they do not."""
        return False


class MemoryStore(ClientStore):
    """In memory, and whole in the checkpoint."""

    def __init__(self) -> None:
        self._blocks: dict[int, Mapping[str, Tensor]] = {}
        self._own: set[int] = set()  # clients whose blocks are in memory of this store, and not of who saved them

    def load(self, client: int) -> Mapping[str, Tensor]:  # noqa: D102
        return self._blocks.get(client, {})

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:  # noqa: D102
        self._blocks.pop(client, None)
        self._own.discard(client)
        if blocks:
            self._blocks[client] = blocks if isinstance(blocks, Blocks) else dict(blocks)

    def write(  # noqa: D102
        self, client: int, index: Index, vector_D: Tensor, round: int, *, outside: float = 1.0
    ) -> Blocks:
        written = super().write(client, index, vector_D, round, outside=outside)
        if written:
            self._own.add(client)
        return written

    def _owns(self, client: int) -> bool:
        return client in self._own

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._blocks)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"blocks": {client: dict(self._blocks[client]) for client in self.clients()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        own = {client: dict(blocks) for client, blocks in state["blocks"].items()}
        self._blocks = {client: Blocks.of(blocks, next(iter(blocks.values())).dtype) for client, blocks in own.items()}
        self._own = set(own)
