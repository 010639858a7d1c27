"""Messages to nodes and answers of nodes, and the transport that carries them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import RecordDict

from hetfl.flower.messages import Answer, Request, read_answer
from hetfl.flower.records import MalformedMessage
from hetfl.printable import printable


@dataclass(frozen=True)
class Failure:
    """A missing or unusable answer.

    Attributes:
        reason: why, as one printable line; it may quote a node's message.
        refused: whether an answer arrived and was refused.
        late: whether the server stopped waiting for the answer.
    """

    reason: str
    refused: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True)
class Letter:
    """A message to a node.

    Attributes:
        content: its records.
        largest: the most bytes of an answer.
    """

    content: RecordDict
    largest: int


@dataclass(frozen=True)
class Sent:
    """A request on its way.

    Attributes:
        node: its receiver.
        request: the request.
        since: when it was sent, monotonic seconds.
        until: when the server stops waiting for its answer, monotonic seconds.
    """

    node: int
    request: Request
    since: float
    until: float

    @property
    def clients(self) -> list[int]:
        """The clients of its orders."""
        return [order.task.client for order in self.request.orders]

    @property
    def round(self) -> int:
        """Its round, from 1."""
        return self.request.orders[0].task.round + 1


class Post(Protocol):
    """Transport of messages to nodes and back."""

    def online(self) -> Mapping[int, str]:
        """Return the nodes that are known to be online, and when each was activated: a restarted node is again."""
        ...

    def send(self, letters: Mapping[int, Letter], seconds: float) -> dict[int, str]:
        """Send a message to each node, which expires after so many seconds; return the messages' ids by node."""
        ...

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        """Return the new answers to messages, by the id of the message."""
        ...


def read_reply(reply: RecordDict | Failure, nonce: str, asked: Collection[int]) -> Answer | Failure:
    """Return the answer in a node's records, or why it is unusable.

    Args:
        reply: what the transport delivered.
        nonce: of the request.
        asked: the clients of the request.
    """
    if isinstance(reply, Failure):
        return reply
    try:
        return read_answer(reply, nonce, list(asked))
    except MalformedMessage as error:
        return Failure(str(error), refused=True)
