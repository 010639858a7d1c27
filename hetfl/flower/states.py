"""The states of clients on their node's disk: residual, memory of the penalty, and personal tensors.

A client makes a new state when it has trained. This state becomes the client's if the server accepts the update that
was sent with it. The client learns this from its next order, so it keeps old and new states until then: an order names
the state to start from, and the other states that the server's checkpoints may still need. The name of a state is a
digest of its content, client, round and federation. So a state that is lost, damaged or another client's is noticed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.store.client_file import digest_of, read_blocks, write_blocks

NOTHING = ""
"""Name of the empty state: the server has accepted no update of the client, or the client has nothing to keep."""
STATE = re.compile(r"(?:[0-9a-f]{32})?")
FEDERATION = re.compile(r"[0-9a-f]{32}")
FILE = re.compile(r"client-(\d+)-round-(\d+)-([0-9a-f]{32})\.safetensors")
IDENTITY = "identity"
"""Name of the file with the identity of a folder of states."""
TORN = "round-*.safetensors.tmp"
"""Pattern of incomplete files, which a node leaves if it is killed while it writes."""


class StateLost(Exception):
    """The state that the server names in an order is not on the node's disk."""


@dataclass(frozen=True)
class ClientState:
    """The state of a client.

    Attributes:
        round: the round of the update that the state belongs to; -1: none.
        blocks: tensors by name, in global coordinates (:class:`hetfl.store.ClientStore`).
    """

    round: int = -1
    blocks: Mapping[str, Tensor] = field(default_factory=dict)


class ClientStates:
    """The states of a node's clients, in one file each, written under a temporary name and renamed.

    Args:
        folder: folder of the states, with a sub-folder per federation; keep it as long as the clients take part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def identity(self) -> str:
        """Return the identity of the folder, 32 hexadecimal digits, which is drawn when the folder is first used.

        Raises:
            OSError: the identity cannot be written.
        """
        path = self._folder / IDENTITY
        if not path.is_file():
            write_whole(path, secrets.token_hex(16).encode())
        return path.read_text(encoding="utf-8", errors="replace").strip()[:32]

    def load(self, federation: str, client: int, state: str) -> ClientState:
        """Return a state.

        Args:
            federation: name of the federation.
            client: the client's id.
            state: name of the state.

        Raises:
            StateLost: the state is missing or damaged; names the states that are on the disk.
        """
        if state == NOTHING:
            return ClientState()
        files = self._files(federation, client)
        if state not in files:
            newest = max((round for round, _ in files.values()), default=None)
            present = "no state at all" if newest is None else f"states up to round {newest}"
            raise StateLost(f"Expected state {state} of client {client} but got {present}")
        round, path = files[state]
        try:
            blocks = read_blocks(path)
        except ConfigurationError as error:
            raise StateLost(str(error)) from error
        if _name(federation, client, round, blocks) != state:
            raise StateLost(f"Expected state {state} of client {client} in {path} but got another's")
        return ClientState(round, blocks)

    def save(self, federation: str, client: int, state: ClientState) -> str:
        """Write a state to the disk, beside the client's other states; return its name.

        Raises:
            OSError: the state cannot be written.
        """
        if not state.blocks:
            return NOTHING
        name = _name(federation, client, state.round, state.blocks)
        path = self._of(federation) / f"client-{client}-round-{state.round}-{name}.safetensors"
        write_blocks(path, {key: block.contiguous() for key, block in state.blocks.items()})
        return name

    def prune(self, federation: str, client: int, keep: Iterable[str]) -> None:
        """Delete a client's incomplete files, and its states other than those in ``keep``."""
        kept = set(keep)
        for torn in self._of(federation).glob(f"client-{client}-{TORN}"):
            torn.unlink(missing_ok=True)
        for name, (_, path) in self._files(federation, client).items():
            if name not in kept:
                path.unlink(missing_ok=True)

    def _of(self, federation: str) -> Path:
        if not FEDERATION.fullmatch(federation):
            raise ValueError(f"Expected 32 hexadecimal digits for a federation but got {federation[:40]!r}")
        return self._folder / federation

    def _files(self, federation: str, client: int) -> dict[str, tuple[int, Path]]:
        """Return by name the round and file of a client's states."""
        matches = (
            (FILE.fullmatch(path.name), path) for path in sorted(self._of(federation).glob(f"client-{client}-*"))
        )
        return {match[3]: (int(match[2]), path) for match, path in matches if match}


def _name(federation: str, client: int, round: int, blocks: Mapping[str, Tensor]) -> str:
    text = f"{federation} {client} {round} {digest_of(blocks)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class StateBook:
    """The server's record of the name of each client's state.

    Args:
        kept: number of the last checkpoints that the server may resume from.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._present: dict[int, str] = {}
        self._pending: dict[int, str] | None = None  # in a checkpoint that may not be on the disk yet
        self._written: list[dict[int, str]] = []  # in the last checkpoints on the disk

    def present(self, client: int) -> str:
        """Return the name of the state that belongs to the client's last accepted update."""
        return self._present.get(client, NOTHING)

    def keep(self, client: int) -> list[str]:
        """Return the names of a client's states that may be needed again, with the present one, sorted."""
        books = [self._present, *self._written, *([] if self._pending is None else [self._pending])]
        return sorted({book[client] for book in books if client in book})

    def take(self, client: int, state: str) -> None:
        """Record the state of an accepted update; :data:`NOTHING` makes the client begin anew."""
        self._present[client] = state
        if state == NOTHING:
            del self._present[client]

    def state_dict(self) -> dict[str, Any]:
        """Return the present states, for a checkpoint."""
        self._pending = dict(self._present)
        return {"clients": list(self._present), "states": list(self._present.values())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        self._present = dict(zip(state["clients"], state["states"], strict=True))
        self._pending, self._written = None, [dict(self._present)]

    def checkpointed(self) -> None:
        """Record that the checkpoint with the last :meth:`state_dict` is on the disk."""
        if self._pending is not None:
            self._written = [*self._written, self._pending][-self._kept :]
            self._pending = None
