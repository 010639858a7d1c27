"""What belongs to a client, on the client's own disk: its residual, and what a penalty remembers of it.

A state is made when a client has trained, and is in force once the server has taken the update that it goes with. Of
that a client learns with the next message, so old and new are kept until then: a message says which state it goes on
from, and which others the server's checkpoints may still go back to. A state is known by a digest of its content, its
client, round and federation, so a state that is lost, damaged or another's is noticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.store.client_file import digest_of, read_blocks, write_blocks

NOTHING = ""
"""The state of a client of which the server has not taken an update, or which has nothing to keep."""
STATE = re.compile(r"(?:[0-9a-f]{32})?")
FEDERATION = re.compile(r"[0-9a-f]{32}")
FILE = re.compile(r"client-(\d+)-round-(\d+)-([0-9a-f]{32})\.safetensors")
TORN = "round-*.safetensors.tmp"
"""What a node that was killed while it wrote leaves behind."""


class StateLost(Exception):
    """The state that the server goes on from is not on the client's disk."""


@dataclass(frozen=True)
class ClientState:
    """What belongs to a client.

    Attributes:
        round: in which the server took the update that it goes with; -1: none.
        blocks: by name, in global coordinates (:class:`hetfl.store.ClientStore`).
    """

    round: int = -1
    blocks: Mapping[str, Tensor] = field(default_factory=dict)


class ClientStates:
    """The states of a node's clients, in one file each, written under a temporary name and renamed.

    Args:
        folder: where they are, for as long as the client takes part in federations; one folder below it for each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, federation: str, client: int, state: str) -> ClientState:
        """Return a state.

        Raises:
            StateLost: it is not there as it was written; says what is.
        """
        if state == NOTHING:
            return ClientState()
        own = self._files(federation, client)
        if state not in own:
            there = max((round for round, _ in own.values()), default=None)
            have = "no state at all" if there is None else f"states up to round {there}"
            raise StateLost(f"Expected state {state} of client {client} but got {have}")
        round, path = own[state]
        try:
            blocks = read_blocks(path)
        except ConfigurationError as error:
            raise StateLost(str(error)) from error
        if _name(federation, client, round, blocks) != state:
            raise StateLost(f"Expected state {state} of client {client} in {path} but got another's")
        return ClientState(round, blocks)

    def save(self, federation: str, client: int, state: ClientState) -> str:
        """Write a state to the disk; return its name. Others stay.

        Raises:
            OSError: it cannot be written.
        """
        if not state.blocks:
            return NOTHING
        name = _name(federation, client, state.round, state.blocks)
        path = self._of(federation) / f"client-{client}-round-{state.round}-{name}.safetensors"
        write_blocks(path, {key: block.contiguous() for key, block in state.blocks.items()})
        return name

    def prune(self, federation: str, client: int, keep: Iterable[str]) -> None:
        """Delete the states of a client that the server will not go back to, and what was never whole."""
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
    """The server's book of which state each client goes on from.

    Args:
        kept: how many of the last checkpoints the server may go back to.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._present: dict[int, str] = {}
        self._pending: dict[int, str] | None = None  # in a checkpoint that may be on its way to the disk
        self._written: list[dict[int, str]] = []  # in the last checkpoints on the disk

    def present(self, client: int) -> str:
        """Return the state that goes with the last update that the server took of a client."""
        return self._present.get(client, NOTHING)

    def keep(self, client: int) -> list[str]:
        """Return the states of a client that may be needed again, the present one included, sorted."""
        books = [self._present, *self._written, *([] if self._pending is None else [self._pending])]
        return sorted({book[client] for book in books if client in book})

    def take(self, client: int, state: str) -> None:
        """Note that the server took an update, and the state that goes with it; :data:`NOTHING` to begin anew."""
        self._present[client] = state
        if state == NOTHING:
            del self._present[client]

    def state_dict(self) -> dict[str, Any]:
        """Return the present states, for a checkpoint."""
        self._pending = dict(self._present)
        return {"clients": list(self._present), "states": list(self._present.values())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._present = dict(zip(state["clients"], state["states"], strict=True))
        self._pending, self._written = None, [dict(self._present)]

    def checkpointed(self) -> None:
        """Learn that the checkpoint with the last :meth:`state_dict` is on the disk."""
        if self._pending is not None:
            self._written = [*self._written, self._pending][-self._kept :]
            self._pending = None
