"""Flower's Grid as the server's post."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from httpx import TransportError

from hetfl.flower.nodes import Failure

AT_ONCE = 16
"""How many answers are asked for at a time: with more nodes than that, each is asked for less often."""
PULL_SECONDS = 0.2
"""How long :meth:`FlowerPost.collect` waits for answers that are under way."""


class FlowerPost:
    """Messages over Flower.

    Flower hands an answer out before all of it has arrived, and then waits for the rest, for minutes if its node has
    died and for hours if it sends a little from time to time. So each answer is pulled by a thread of its own: nobody
    else's waits for it, and no round lasts longer than its deadline.

    Args:
        grid: of the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._came: dict[str, RecordDict | Failure | Exception] = {}
        self._asked: dict[str, float] = {}  # when somebody looked last for an answer
        self._under_way: dict[str, threading.Thread] = {}

    def online(self) -> Collection[int]:
        """Return the nodes whose heartbeat is known; one that has just died is among them."""
        return list(self._grid.get_node_ids())

    def send(self, letters: Mapping[int, RecordDict], seconds: float) -> dict[int, str]:
        """Push messages that end with their deadline; return the ids of those that Flower took."""
        messages = [Message(content, node, MessageType.TRAIN, ttl=seconds) for node, content in letters.items()]
        ids = list(self._grid.push_messages(messages))
        return {node: id for node, id in zip(letters, ids, strict=False) if id}

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        """Return the answers that there are; a failure where Flower or the node could not deal with a message.

        What came of a node and cannot be read is a failure, too: of that node, and of nobody else.

        Raises:
            Exception: the SuperLink cannot be asked.
        """
        idle = [id for id in ids if id not in self._under_way and id not in self._came]
        for id in sorted(idle, key=lambda id: self._asked.get(id, 0.0))[:AT_ONCE]:
            self._asked[id] = time.monotonic()
            self._under_way[id] = threading.Thread(target=self._pull, args=(id,), daemon=True)
            self._under_way[id].start()
        until = time.monotonic() + PULL_SECONDS
        for thread in [self._under_way[id] for id in ids if id in self._under_way]:
            thread.join(max(0.0, until - time.monotonic()))
        self._under_way = {id: thread for id, thread in self._under_way.items() if thread.is_alive()}
        answers: dict[str, RecordDict | Failure] = {}
        for id in ids:
            if id in self._came and id not in self._under_way:
                came = self._came.pop(id)
                self._asked.pop(id, None)
                if isinstance(came, Exception):
                    raise came
                answers[id] = came
        return answers

    def _pull(self, id: str) -> None:
        """Look for one answer, and wait until all of it is there."""
        try:
            for message in self._grid.pull_messages([id]):
                self._came[id] = _content(message, id)
        except (TransportError, OSError) as error:  # nobody is there to be asked
            self._came[id] = error
        except Exception as error:
            self._came[id] = self._cause(error)

    def _cause(self, error: Exception) -> Failure | Exception:
        """Return whose fault an exception is that came out of a pull: a node's, unless the SuperLink serves us no more.

        Flower makes objects of a node's bytes after the SuperLink has handed them out. Whatever is wrong with them is
        an exception of some library: protobuf's ``DecodeError``, ``JSONDecodeError``, ``UnicodeDecodeError``,
        ``ValueError``, ``KeyError``, ``IndexError``, ``TypeError``, ``AttributeError``, ``RecursionError``,
        ``MemoryError``.
        """
        try:
            self.online()
        except Exception as gone:
            return gone
        return Failure(f"Expected an answer that can be read but got {type(error).__name__}: {error}", refused=True)


def _content(message: Message, id: str) -> RecordDict | Failure:
    """Return what an answer to a message holds. All of it is a node's word, its own id and type included."""
    if message.metadata.reply_to_message_id != id:
        return Failure("Expected an answer to what was asked but got one to something else", refused=True)
    if message.has_error():
        return Failure(f"Flower: {message.error.reason}")
    content: object = message.content
    if not isinstance(content, RecordDict):
        return Failure(f"Expected records but got {type(content).__name__}", refused=True)
    return content
