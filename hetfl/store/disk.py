"""The store of clients' states with one file per client and round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.files import make_folder, write_whole
from hetfl.printable import printable
from hetfl.store.base import ClientStore
from hetfl.store.client_file import DIGEST_BYTES, FILES, file_name, read_blocks, write_blocks


class DiskStore(ClientStore):
    """Keeps one immutable safetensors file per client and round; a checkpoint has only each client's round and digest.

    A file is written under a temporary name, synced and renamed, so it is complete or absent. A file that a later one
    supersedes is deleted once ``keep`` checkpoints that do not refer to it are on the disk (:meth:`checkpointed`); so a
    checkpoint that could not be written deletes nothing. In a run with a ``last.ckpt``, only that one's saves count.
    Checkpoints without a save between them count as one. Files left by a killed run are deleted in the same way. If the
    disk is full, blocks stay in memory, and in checkpoints, until they can be written.

    Args:
        folder: folder of the files, made if absent; for one run and one store only. None: a folder in the run's folder.
        keep: number of checkpoints, at least 2: while one is being written, only the one before it is complete.

    Raises:
        ConfigurationError: ``keep`` is below 2.
    """

    def __init__(self, folder: str | None = None, keep: int = 2) -> None:
        if keep < 2:
            raise ConfigurationError(f"Expected keep of at least 2 checkpoints but got {keep}")
        self._given, self._keep = folder, keep
        self._folder = None if folder is None else Path(folder)
        self._bound = folder is not None
        self._rounds: dict[int, int] = {}
        self._digests: dict[int, str] = {}  # of the clients' files
        self._known = False  # whether the files in the folder are this run's
        self._changed = True
        self._pending = False  # whether a checkpoint may not be on the disk yet
        self._written = 0
        self._superseded: dict[Path, int] = {}  # by file, the number of the last checkpoint that may refer to it
        self._unwritten: dict[int, dict[str, Tensor]] = {}  # by client, blocks that could not be written

    @property
    def fixed(self) -> str | None:  # noqa: D102
        return self._given

    def bind(self, folder: str | None) -> None:
        """Use a run's folder, unless the constructor got one; copies the present files into a new folder.

        Raises:
            ConfigurationError: there is no folder.
        """
        if self._given is not None:
            return
        before, self._folder = self._folder, None if folder is None else Path(folder)
        self._bound = folder is not None
        if self._path == before or before is None:
            return
        self._superseded = {}
        self._known = not any(self._path.glob(FILES))  # other files are only accepted with their run's checkpoint
        names = [file_name(*item) for item in self._rounds.items() if item[0] not in self._unwritten]
        for name in names if self._known else []:
            write_whole(self._path / name, (before / name).read_bytes())

    def find(self, folder: str) -> None:  # noqa: D102
        if not self._bound:
            self._folder = Path(folder)

    def load(self, client: int) -> Mapping[str, Tensor]:
        """Return the client's blocks by name; empty for a client without any.

        Raises:
            ConfigurationError: there is no folder; the file is damaged, or another one is in its place; or it was
                deleted, because the checkpoint is older than the last ``keep``.
        """
        if client not in self._rounds:
            return {}
        if client in self._unwritten:
            return self._unwritten[client]
        path = self._path / file_name(client, self._rounds[client])
        if not path.exists():
            raise ConfigurationError(
                f"Expected the state of client {client} in {path} but got no such file: "
                f"files are kept for the last {self._keep} checkpoints"
            )
        return read_blocks(path, self._digests[client])

    def save(self, client: int, blocks: Mapping[str, Tensor], round: int) -> None:
        """Replace the client's blocks as of a round; without blocks the client is forgotten.

        If the file cannot be written, the store warns and keeps the blocks in memory.

        Raises:
            ConfigurationError: there is no folder, it holds another run's files, or its path is a file.
        """
        self._claim()
        before, path = self._rounds.get(client), self._path / file_name(client, round)
        self._unwritten.pop(client, None)
        self._digests.pop(client, None)
        if blocks:
            self._rounds[client] = round
            self._unwritten[client] = {name: block.contiguous() for name, block in blocks.items()}
            self._superseded.pop(path, None)
            self._write()
        else:
            self._rounds.pop(client, None)
        if before is not None and before != self._rounds.get(client):
            self._superseded[self._path / file_name(client, before)] = self._written + self._pending
        self._changed = True

    def clients(self) -> list[int]:  # noqa: D102
        return sorted(self._rounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the round and the digest of each client's file, 48 bytes per client."""
        self._pending |= self._changed
        self._changed = False
        digests = b"".join(bytes.fromhex(self._digests[client]) for client in sorted(self._digests))
        return {
            "digests": torch.tensor(list(digests), dtype=torch.uint8).reshape(-1, DIGEST_BYTES),
            "rounds": torch.tensor(sorted(self._rounds.items()), dtype=torch.int64).reshape(-1, 2),
            "unwritten": {client: dict(blocks) for client, blocks in self._unwritten.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned; other files in the folder are deleted later.

        Raises:
            ConfigurationError: files of the state are not in the folder, or the state lacks their digests.
        """
        self._rounds = dict(state["rounds"].tolist())
        self._unwritten = {client: dict(blocks) for client, blocks in state["unwritten"].items()}
        written, digests = sorted(self._rounds.keys() - self._unwritten.keys()), state.get("digests", ())
        if len(digests) != len(written):
            raise ConfigurationError(
                f"Expected digests of {len(written)} clients' files in the checkpoint but got {len(digests)}"
            )
        self._digests = {client: bytes(digest.tolist()).hex() for client, digest in zip(written, digests, strict=True)}
        self._changed = self._known = True
        if self._folder is None:
            return
        present, wanted = set(self._folder.glob(FILES)), self._files()
        if not wanted <= present:
            raise ConfigurationError(
                f"Expected the files of {len(wanted)} clients in {self._folder.absolute()} but got "
                f"{len(wanted & present)} of them: files are kept in the run's folder, for its last {self._keep} "
                "checkpoints"
            )
        self._superseded = dict.fromkeys(present - wanted, self._written + self._pending)

    def _files(self) -> set[Path]:
        """Return the files of the present blocks that have been written."""
        rounds = {client: round for client, round in self._rounds.items() if client not in self._unwritten}
        return {self._path / file_name(*item) for item in rounds.items()}

    def _write(self) -> None:
        """Write blocks that are not in files yet, until the disk refuses one."""
        for client, blocks in list(self._unwritten.items()):
            path = self._path / file_name(client, self._rounds[client])
            try:
                self._digests[client] = write_blocks(path, blocks)
            except OSError as error:
                reason = f"({error.strerror}); kept in memory meanwhile, training goes on"
                rank_zero_warn(f"{printable(path)} not written {reason}")
                return
            del self._unwritten[client]

    def checkpointed(self) -> None:
        """Delete the files that none of the last ``keep`` checkpoints refers to."""
        if self._pending:
            self._written, self._pending = self._written + 1, False
            for path in [path for path, last in self._superseded.items() if last <= self._written - self._keep]:
                path.unlink(missing_ok=True)
                del self._superseded[path]

    def _claim(self) -> None:
        """Make the folder, and check that it has no files of another run.

        Raises:
            ConfigurationError: its path is a file, or it has clients' files whose checkpoint was not loaded.
        """
        if self._known:
            return
        make_folder(self._path, "clients' states into")
        if any(self._path.glob(FILES)):
            raise ConfigurationError(f"Expected no clients' files in {self._path} but got those of another run")
        self._known = True

    @property
    def _path(self) -> Path:
        if self._folder is None:
            raise ConfigurationError("Expected a folder for DiskStore, or a run folder, but got none")
        return self._folder
