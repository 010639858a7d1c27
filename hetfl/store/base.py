"""The base class of stores of clients' states between rounds, and the store in memory.

Residuals of error feedback, memories of penalties and personal tensors are vectors in global coordinates. A store keeps
a block per tensor: the leading block of the global tensor that covers all entries that the client has held so far. So a
client that is always at a small level needs only as much memory as its sub-model. Blocks are on the CPU. Tensors that a
store returns are valid until the client's next write: a write may reuse their memory.
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
    """A vector per client in global coordinates; entries that were never written are zero."""

    @property
    def fixed(self) -> str | None:
        """The folder of its files if the run's folder does not determine it; None otherwise."""
        return None

    @abstractmethod
    def load(self, client: int) -> Mapping[str, Tensor]:
        """Return the client's blocks by name, not to be modified; empty for a client without any.

        They may share the store's memory: copy them to keep them beyond the client's next :meth:`write`.
        """

    @abstractmethod
    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten.

        The store may keep the tensors themselves, and copies them before it changes them.
        """

    @abstractmethod
    def clients(self) -> list[int]:
        """Return the ids of clients that have blocks, ascending."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as plain types and tensors; like a module's, it has references."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a copy of the state that :meth:`state_dict` returned."""

    def describe(self) -> str:
        """Return the kind of store: a checkpoint cannot be loaded into another kind."""
        return type(self).__name__

    def bind(self, folder: str | None) -> None:
        """Set the run's folder, in which a store may keep files; None if there is none. By default does nothing."""

    def find(self, folder: str) -> None:
        """Read the files of a run in a folder, unless the store is bound to a run. By default does nothing."""

    def checkpointed(self) -> None:
        """Called once a checkpoint with the last :meth:`state_dict` is on the disk. By default does nothing."""

    def read(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return the client's entries at an index, shape (D,), with dtype and device of ``like``; None: all zero.

        They may share the store's memory: do not modify them, nor use them after the client's next :meth:`write`.
        """
        blocks = self.load(client)
        return Blocks.of(blocks, like.dtype).at(index).to(like.device) if blocks else None

    def write(self, client: int, index: Index, vector_D: Tensor, round: int, *, outside: float = 1.0) -> Blocks:
        """Replace the client's entries at an index as of a round; return all of its blocks.

        Entries outside the index are multiplied by ``outside``; a client whose entries are all zero is forgotten.

        Args:
            client: the client's id.
            index: the entries to replace.
            vector_D: the values, shape (D,); copied.
            round: the round's number.
            outside: factor of all other entries.

        Raises:
            ValueError: the number of values is not that of the index's entries; nothing is written.
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
        """Return whether the store may write into the memory of the client's blocks. By default it may not."""
        return False


class MemoryStore(ClientStore):
    """Keeps all blocks in memory, and writes all of them into checkpoints."""

    def __init__(self) -> None:
        self._blocks: dict[int, Mapping[str, Tensor]] = {}
        self._writable: set[int] = set()  # clients whose blocks this store allocated, so that it may write into them

    def load(self, client: int) -> Mapping[str, Tensor]:  # noqa: D102
        return self._blocks.get(client, {})

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:  # noqa: D102
        self._blocks.pop(client, None)
        self._writable.discard(client)
        if blocks:
            self._blocks[client] = blocks if isinstance(blocks, Blocks) else dict(blocks)

    def write(  # noqa: D102
        self, client: int, index: Index, vector_D: Tensor, round: int, *, outside: float = 1.0
    ) -> Blocks:
        written = super().write(client, index, vector_D, round, outside=outside)
        if written:
            self._writable.add(client)
        return written

    def _owns(self, client: int) -> bool:
        return client in self._writable

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._blocks)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"blocks": {client: dict(self._blocks[client]) for client in self.clients()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        loaded = {client: dict(blocks) for client, blocks in state["blocks"].items()}
        self._blocks = {
            client: Blocks.of(blocks, next(iter(blocks.values())).dtype) for client, blocks in loaded.items()
        }
        self._writable = set(loaded)
