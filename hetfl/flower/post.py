"""Flower's Grid as the server's post."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid


class FlowerPost:
    """Messages over Flower.

    Args:
        grid: of the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def online(self) -> Collection[int]:
        """Return the nodes whose heartbeat is known; one that has just died is among them."""
        return list(self._grid.get_node_ids())

    def send(self, letters: Mapping[int, RecordDict], seconds: float) -> dict[int, str]:
        """Push messages that end with their deadline; return the ids of those that Flower took."""
        messages = [Message(content, node, MessageType.TRAIN, ttl=seconds) for node, content in letters.items()]
        ids = list(self._grid.push_messages(messages))
        return {node: id for node, id in zip(letters, ids, strict=False) if id}

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | str]:
        """Pull the answers that there are; where Flower or the node could not deal with a message, an error's text."""
        found: dict[str, RecordDict | str] = {}
        for message in self._grid.pull_messages(ids):
            # By the message that it answers: an error that the SuperLink made up does not name the node.
            found[message.metadata.reply_to_message_id] = (
                f"Flower: {message.error.reason}" if message.has_error() else message.content
            )
        return {id: content for id, content in found.items() if id in set(ids)}
