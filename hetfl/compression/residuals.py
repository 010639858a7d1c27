"""Where residuals are kept between rounds: in memory, or in one file per client and round.

A residual is, per name of a tensor, a block: the leading extent of the global tensor that covers everything the client
has held so far. So a client that is always at a small level costs what its sub-model costs. Blocks are on the CPU and
are never modified in place: a checkpoint may refer to them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from hetfl.errors import ConfigurationError


class ResidualStore(ABC):
    """Residuals by client; a client without one is not in it."""

    @abstractmethod
    def load(self, client: int) -> dict[str, Tensor]:
        """Return the client's blocks by name, not to be modified; empty for a client without a residual."""

    @abstractmethod
    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten."""

    @abstractmethod
    def clients(self) -> list[int]:
        """Return the ids of clients with a residual, ascending."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, in plain types and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""

    def bind(self, folder: str) -> None:
        """Learn the folder of this run, where a store may keep files. By default nothing."""


class MemoryResiduals(ResidualStore):
    """Residuals in memory, and whole in the checkpoint."""

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


class DiskResiduals(ResidualStore):
    """Residuals in one immutable safetensors file per client and round; a checkpoint holds only which round is whose.

    A file is written under a temporary name, synced and renamed, so it is whole or absent. Once a later file supersedes
    it, it stays for as long as one of the last ``keep`` checkpoints may refer to it. A checkpoint is a call of
    :meth:`state_dict` after something was saved: several in a row count as one. Files in the folder that the state does
    not know, left by a run that was killed, go the same way; so a folder is for one run.

    Args:
        folder: where the files go, made if absent; None: the folder given to :meth:`bind`.
        keep: number of checkpoints, at least 2: while one is being written, the one before it is the last whole one.

    Raises:
        ConfigurationError: ``keep`` is below 2.
    """

    def __init__(self, folder: str | None = None, keep: int = 2) -> None:
        if keep < 2:
            raise ConfigurationError(f"Expected keep of at least 2 checkpoints but got {keep}")
        self._folder = None if folder is None else Path(folder)
        self._keep = keep
        self._rounds: dict[int, int] = {}
        self._checkpoint = 0
        self._changed = True
        self._superseded: dict[Path, int] = {}  # the last checkpoint that may refer to the file

    def bind(self, folder: str) -> None:
        """Use a folder, unless the constructor was given one."""
        if self._folder is None:
            self._folder = Path(folder)

    def load(self, client: int) -> dict[str, Tensor]:
        """Return the client's blocks by name; empty for a client without a residual.

        Raises:
            ConfigurationError: no folder is known, or the file is gone: the checkpoint is older than the last ``keep``.
        """
        if client not in self._rounds:
            return {}
        path = self._path(client, self._rounds[client])
        if not path.exists():
            raise ConfigurationError(
                f"Expected the residual of client {client} in {path} but got no such file: "
                f"residuals are kept for the last {self._keep} checkpoints"
            )
        return safetensors.torch.load(path.read_bytes())

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:  # noqa: D102
        if blocks:
            path = self._path(client, round)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, safetensors.torch.save({name: block.contiguous() for name, block in blocks.items()}))
            self._rounds[client] = round
        else:
            self._rounds.pop(client, None)
        self._changed = True

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._rounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the round of each client's file; delete the files that no kept checkpoint refers to."""
        if self._changed:
            self._changed = False
            self._checkpoint += 1
            self._delete_unreferenced()
        return {"rounds": dict(sorted(self._rounds.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._rounds = dict(state["rounds"])
        self._changed = True

    def _path(self, client: int, round: int) -> Path:
        if self._folder is None:
            raise ConfigurationError("Expected a folder for DiskResiduals, or a run that has one, but got none")
        return self._folder / f"client-{client}-round-{round}.safetensors"

    def _delete_unreferenced(self) -> None:
        if self._folder is None or not self._folder.is_dir():
            return
        present = {self._path(client, round) for client, round in self._rounds.items()}
        gone = set(self._folder.glob("client-*-round-*.safetensors")) - present
        self._superseded = {path: self._superseded.get(path, self._checkpoint - 1) for path in gone}
        for path, last in self._superseded.items():
            if last <= self._checkpoint - self._keep:
                path.unlink()
        for leftover in self._folder.glob("client-*-round-*.tmp"):
            leftover.unlink()


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent whenever the machine stops."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
