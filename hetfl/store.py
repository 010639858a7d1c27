"""Where what belongs to a client is kept between rounds: in memory, or in one file per client and round.

Residuals of error feedback and a method's memories of its clients are vectors in global coordinates: per name of a
tensor a block, the leading extent of the global tensor that covers everything the client has held so far. So a client
that is always at a small level costs what its sub-model costs. Blocks are on the CPU and are never modified in place: a
checkpoint may refer to them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.submodel import extent, index_layout, put, take
from hetfl.types import Index, IndexEntry

FILES = "client-*-round-*"
"""The files of :class:`DiskStore`, torn ones of a killed run included."""
DIGEST = "blake2b"
"""Where the digest of a file's blocks stands in its metadata."""


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

    def bind(self, folder: str | None) -> None:
        """Learn the folder of this run, where a store may keep files; None if it has none. By default nothing."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk. By default nothing."""

    def read(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return the client's entries at an index, shape (D,), with dtype and device of ``like``; None: all zero."""
        blocks = self.load(client)
        if not blocks:
            return None
        parts = []
        for (name, entry), size in zip(index.items(), index_layout(index).sizes, strict=True):
            if name in blocks:
                parts.append(take(_grown(blocks[name], extent(entry)), _on_cpu(entry)).reshape(-1))
            else:
                parts.append(torch.zeros(size, dtype=like.dtype))
        return torch.cat(parts).to(like)

    def write(self, client: int, index: Index, vector_D: Tensor, round: int) -> dict[str, Tensor]:
        """Replace the client's entries at an index as of a round; return all of its blocks.

        Entries outside the index stay; a block that is zero everywhere is dropped.
        """
        vector_D = vector_D.cpu()
        blocks = self.load(client)
        if not blocks and not bool(vector_D.any()):
            return {}
        written = dict(blocks)
        for (name, entry), part in zip(index.items(), index_layout(index).views(vector_D).values(), strict=True):
            shape = extent(entry)
            written[name] = _grown(blocks[name], shape).clone() if name in blocks else vector_D.new_zeros(shape)
            put(written[name], _on_cpu(entry), part)
        written = {name: block for name, block in written.items() if bool(block.any())}
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


class DiskStore(ClientStore):
    """In one immutable safetensors file per client and round; a checkpoint holds only which round is whose.

    A file is written under a temporary name, synced and renamed, so it is whole or absent. Once a later file supersedes
    it, it stays until ``keep`` checkpoints that do not refer to it are on the disk (:meth:`checkpointed`): a checkpoint
    that could not be written lets nothing go. Checkpoints between which nothing was saved count as one. Files that a
    killed run left behind go the same way.

    Args:
        folder: where the files go, made if absent; for one run and one store alone. None: a folder in the run's own.
        keep: number of checkpoints, at least 2: while one is being written, the one before it is the last whole one.

    Raises:
        ConfigurationError: ``keep`` is below 2.
    """

    def __init__(self, folder: str | None = None, keep: int = 2) -> None:
        if keep < 2:
            raise ConfigurationError(f"Expected keep of at least 2 checkpoints but got {keep}")
        self._given, self._keep = folder, keep
        self._folder = None if folder is None else Path(folder)
        self._rounds: dict[int, int] = {}
        self._known = False  # whether the files in the folder are this run's
        self._changed = True
        self._pending = False  # a checkpoint may be on its way to the disk
        self._written = 0
        self._superseded: dict[Path, int] = {}  # the last checkpoint that may refer to the file

    def bind(self, folder: str | None) -> None:
        """Use a run's folder, unless the constructor was given one; files of a run before come along.

        Raises:
            ConfigurationError: there is no folder.
        """
        if self._given is not None:
            return
        before, self._folder = self._folder, None if folder is None else Path(folder)
        if self._own == before or before is None:
            return
        self._superseded = {}
        self._known = not any(self._own.glob(FILES))  # else only a checkpoint of the run that they belong to helps
        for name in [self._name(*item) for item in self._rounds.items()] if self._known else []:
            self._own.mkdir(parents=True, exist_ok=True)
            write_whole(self._own / name, (before / name).read_bytes())

    def load(self, client: int) -> dict[str, Tensor]:
        """Return the client's blocks by name; empty for a client without any.

        Raises:
            ConfigurationError: no folder is known; the file is damaged; or it is gone: the checkpoint is older than the
                last ``keep``.
        """
        if client not in self._rounds:
            return {}
        path = self._own / self._name(client, self._rounds[client])
        if not path.exists():
            raise ConfigurationError(
                f"Expected what belongs to client {client} in {path} but got no such file: "
                f"files are kept for the last {self._keep} checkpoints"
            )
        return _read_whole(path)

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten.

        Raises:
            ConfigurationError: no folder is known, or it holds another run's files.
            OSError: the file cannot be written; the one before it stays the client's.
        """
        self._claim()
        before, path = self._rounds.get(client), self._own / self._name(client, round)
        if blocks:
            whole = {name: block.contiguous() for name, block in blocks.items()}
            write_whole(path, safetensors.torch.save(whole, {DIGEST: _digest(whole)}))
            self._rounds[client] = round
            self._superseded.pop(path, None)
        else:
            self._rounds.pop(client, None)
        if before is not None and before != self._rounds.get(client):
            self._superseded[self._own / self._name(client, before)] = self._written + self._pending
        self._changed = True

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._rounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the round of each client's file: two integers a client."""
        self._pending |= self._changed
        self._changed = False
        return {"rounds": torch.tensor(sorted(self._rounds.items()), dtype=torch.int64).reshape(-1, 2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; other files in the folder are left until they are superseded."""
        self._rounds = dict(state["rounds"].tolist())
        self._changed = self._known = True
        if self._folder is not None:
            present = {self._folder / self._name(*item) for item in self._rounds.items()}
            self._superseded = dict.fromkeys(set(self._folder.glob(FILES)) - present, self._written + self._pending)

    def checkpointed(self) -> None:
        """Delete the files that none of the last ``keep`` checkpoints refers to."""
        if self._pending:
            self._written, self._pending = self._written + 1, False
            for path in [path for path, last in self._superseded.items() if last <= self._written - self._keep]:
                path.unlink(missing_ok=True)
                del self._superseded[path]

    def _claim(self) -> None:
        """Make the folder this run's own.

        Raises:
            ConfigurationError: it holds clients' files, and no checkpoint of theirs was loaded.
        """
        if self._known:
            return
        self._own.mkdir(parents=True, exist_ok=True)
        if any(self._own.glob(FILES)):
            raise ConfigurationError(f"Expected no clients' files in {self._own} but got those of another run")
        self._known = True

    @property
    def _own(self) -> Path:
        if self._folder is None:
            raise ConfigurationError("Expected a folder for DiskStore, or a run folder, but got none")
        return self._folder

    @staticmethod
    def _name(client: int, round: int) -> str:
        return f"client-{client}-round-{round}.safetensors"


def _on_cpu(entry: IndexEntry) -> IndexEntry:
    return tuple(part if isinstance(part, slice) else part.cpu() for part in entry)


def _grown(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a block with zeros up to ``shape`` where it is smaller; the block itself if it is nowhere."""
    wanted = [max(sizes) for sizes in zip(block.shape, shape, strict=True)]
    if list(block.shape) == wanted:
        return block
    grown = block.new_zeros(wanted)
    grown[tuple(slice(size) for size in block.shape)] = block
    return grown


def _digest(blocks: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(blocks):
        digest.update(f"{name} {blocks[name].dtype} {tuple(blocks[name].shape)} ".encode())
        digest.update(blocks[name].numpy().data)
    return digest.hexdigest()


def _read_whole(path: Path) -> dict[str, Tensor]:
    """Return the blocks of a file.

    Raises:
        ConfigurationError: they are not those that were written.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            blocks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
    except safetensors.SafetensorError:
        digest = None
    if digest is None or digest != _digest(blocks):
        raise ConfigurationError(f"Expected {path} as it was written but got a damaged file")
    return blocks
