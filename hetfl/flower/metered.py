"""A bound of the size of a node's answer, which holds before Flower assembles the answer in memory.

An answer travels as objects: a message, its records, their arrays, and the chunks of each array. An array lists its
chunks and may list one chunk any number of times, so a few kilobytes can stand for terabytes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.superlink.grid import HttpGrid

from hetfl.reading import TooMuch, parse_json

OBJECT_BYTES = 1 << 10
"""An answer of b bytes may have one object for every so many bytes. Each object is a request to the SuperLink."""

FRAME_BYTES = 1 << 22
"""The most bytes of an answer beside its reports."""
REPORT_BYTES = 1 << 16
"""The most bytes of a report beside what it sends of a model."""
CLIENT_BYTES = 16
"""The most bytes of a number of a client."""
ENTRY_BYTES = 24
"""The most bytes that one entry of the global model takes in a payload: two values of float64 and a position."""


def most_bytes(orders: int = 0, entries: int = 0, clients: int = 0) -> int:
    """Return the most bytes of an answer.

    Args:
        orders: of the request.
        entries: of the global model.
        clients: all clients, which the answer may name.
    """
    return FRAME_BYTES + orders * (REPORT_BYTES + ENTRY_BYTES * entries) + CLIENT_BYTES * clients


def pull(grid: Grid, id: str, largest: int) -> Iterable[Message]:
    """Return the answers to a message that have arrived.

    Args:
        grid: Flower's. Only answers from the network are bounded: other grids return objects of this process.
        id: of the message.
        largest: the most bytes of an answer, chunks counted as often as an array lists them.

    Raises:
        TooMuch: an answer is larger. The SuperLink has been told to forget it.
    """
    if not isinstance(grid, HttpGrid):
        return grid.pull_messages([id])
    metered, client = copy.copy(grid), MeteredClient(grid._runtime_client, largest)
    metered._client = client  # type: ignore[assignment]
    try:
        return metered.pull_messages([id])
    except TooMuch:
        if client.unconfirmed:
            grid._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=grid.node, run_id=grid.run.run_id, message_object_id=client.unconfirmed
                )
            )
        raise


class MeteredClient:
    """Flower's client of the SuperLink for one answer, which counts what it receives.

    Flower pulls the objects of an answer in several threads, confirms that it has all of them, and then makes arrays of
    chunks. So bytes are counted as they come, and the sizes of arrays are known when the answer is confirmed.

    Args:
        client: Flower's own.
        largest: the most bytes.

    Attributes:
        unconfirmed: the id of an answer that is not confirmed yet; empty: there is none.
    """

    def __init__(self, client: Any, largest: int) -> None:
        self._client, self._largest = client, largest
        self._lock = threading.Lock()
        self.unconfirmed = ""
        self._bytes = 0
        self._sizes: dict[str, int] = {}
        self._arrays: list[bytes] = []

    def PullMessages(self, request: Any) -> Any:
        """Return the heads of the answers and the ids of their objects.

        Raises:
            TooMuch: there are too many objects.
        """
        response = self._client.PullMessages(request)
        most = max(self._largest // OBJECT_BYTES, 1)
        for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            self.unconfirmed = message.metadata.message_id
            if (count := sum(1 for _ in iterate_object_tree(tree))) > most:
                raise TooMuch(f"an answer of at most {most:,} objects", f"{count:,}")
        return response

    def PullObject(self, request: Any) -> Any:
        """Return an object's bytes.

        Raises:
            TooMuch: they are too many, together with those of the other objects.
        """
        response = self._client.PullObject(request)
        content: bytes = response.object_content
        with self._lock:
            self._bytes += len(content)
            self._sizes[request.object_id] = len(content)
            if content.startswith(Array.__qualname__.encode()):
                self._arrays.append(content)
            if self._bytes > self._largest:
                raise TooMuch(f"an answer of at most {self._largest:,} bytes")
        return response

    def ConfirmMessageReceived(self, request: Any) -> Any:
        """Confirm that all objects have come.

        Raises:
            TooMuch: the arrays made of their chunks would have too many bytes.
            ValueError: an array does not list chunks.
        """
        response = self._client.ConfirmMessageReceived(request)
        self.unconfirmed = ""
        if (total := sum(map(self._array_bytes, self._arrays))) > self._largest:
            raise TooMuch(f"an answer of at most {self._largest:,} bytes", f"arrays of {total:,}")
        return response

    def _array_bytes(self, content: bytes) -> int:
        """Return the bytes of an array's chunks, each counted as often as the array lists it."""
        if get_object_type_from_object_content(content) != Array.__qualname__:
            return 0
        chunks = get_object_children_ids_from_object_content(content)
        metadata = parse_json(get_object_body(content, Array))
        return sum(self._sizes[chunks[position]] for position in metadata["arraychunk_ids"])
