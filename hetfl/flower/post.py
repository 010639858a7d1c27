"""Flower's Grid as the server's post."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

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
        self._came: dict[str, RecordDict | str | Exception] = {}
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

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | str]:
        """Return the answers that there are; where Flower or the node could not deal with a message, an error's text.

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
        found: dict[str, RecordDict | str] = {}
        for id in ids:
            if id in self._came and id not in self._under_way:
                came = self._came.pop(id)
                self._asked.pop(id, None)
                if isinstance(came, Exception):
                    raise came
                found[id] = came
        return found

    def _pull(self, id: str) -> None:
        """Look for one answer, and wait until all of it is there."""
        try:
            for message in self._grid.pull_messages([id]):
                # By the message that it answers: an error that the SuperLink made up does not name the node.
                if message.metadata.reply_to_message_id == id:
                    self._came[id] = f"Flower: {message.error.reason}" if message.has_error() else message.content
        except Exception as error:  # for who collects
            self._came[id] = error
