"""The nodes that are online, the clients that they serve, and the answers that the server waits for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import RecordDict
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hetfl.errors import ConfigurationError
from hetfl.flower.messages import Answer, Request, read_answer, request_records
from hetfl.flower.metered import most_bytes
from hetfl.flower.records import MalformedMessage
from hetfl.printable import printable

POLL_SECONDS = 0.2
NOT_TAKEN = "Flower did not take it"
HELLO_SECONDS = 600.0
"""Seconds that a node has to say which clients it serves."""


AGAIN_SECONDS = 10.0
"""Seconds after which a node that could not take part is asked again: it may have been restarted."""


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


class Post(Protocol):
    """Transport of messages to nodes and back."""

    def online(self) -> Collection[int]:
        """Return the nodes that are known to be online."""
        ...

    def send(self, letters: Mapping[int, Letter], seconds: float) -> dict[int, str]:
        """Send a message to each node, which expires after so many seconds; return the messages' ids by node."""
        ...

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        """Return the new answers to messages, by the id of the message."""
        ...


class Nodes:
    """The nodes of a federation.

    When a node appears, it is asked which clients it serves. A node that misses a deadline gets no further requests
    until its late answer arrives, which is ignored: so it delays only one round.

    Args:
        post: carries messages.
        clock: returns monotonic seconds.
        sleep: waits for some seconds.
    """

    def __init__(
        self, post: Post, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._post, self._clock, self._sleep = post, clock, sleep
        self._serves: dict[int, frozenset[int]] = {}
        self._greeted: dict[int, tuple[str, str]] = {}  # by node, id and nonce of the unanswered hello request
        self._overdue: dict[int, str] = {}  # by node, id of the message that it has not answered in time
        self._refused: dict[int, tuple[float, str]] = {}  # by node, time of the next hello request, and the reason
        self._settings: Mapping[str, str] = {}
        self._clients: frozenset[int] = frozenset()  # all clients of the federation
        self._entries = 0

    def serving(self, client: int) -> int | None:
        """Return the first node that serves a client and is not overdue; None if there is none."""
        return next((node for node, clients in self._present().items() if client in clients), None)

    def _present(self) -> dict[int, frozenset[int]]:
        return {node: clients for node, clients in self._serves.items() if node not in self._overdue}

    def gather(self, settings: Mapping[str, str], clients: frozenset[int], entries: int, seconds: float) -> None:
        """Wait until every client has a node, or until the time is over and some clients have one.

        Args:
            settings: the settings in which nodes must agree with the server.
            clients: all clients.
            entries: entries of the global model, which bound the size of an answer.
            seconds: how long to wait.

        Raises:
            ConfigurationError: no node that can take part appeared in time.
        """
        self._settings, self._clients, self._entries = settings, clients, entries
        until = self._clock() + seconds
        while True:
            self.refresh()
            missing = sorted(clients.difference(*self._present().values()))
            if not missing:
                return
            if self._clock() >= until:
                break
            self._sleep(POLL_SECONDS)
        if not self._present():
            raise ConfigurationError(f"Expected a node that can take part within {seconds:g} s but none came")
        rank_zero_warn(f"No node serves clients {missing} after {seconds:g} s: the first round begins without them")

    def refresh(self) -> None:
        """Update the nodes: forget those that are offline, read late answers, and ask new ones for their clients."""
        online = set(self._post.online())
        for known in (self._serves, self._greeted, self._overdue, self._refused):
            for node in [node for node in known if node not in online]:
                del known[node]
        self._hear_overdue()
        self._hear_greeted()
        busy = {node for node, (until, _) in self._refused.items() if self._clock() < until}
        self._greet([node for node in sorted(online) if node not in busy | self._serves.keys() | self._greeted.keys()])

    def _hear_overdue(self) -> None:
        late = {id: node for node, id in self._overdue.items()}
        for id, reply in self._post.collect(list(late)).items() if late else ():
            node = late[id]
            del self._overdue[node]
            if isinstance(reply, Failure) and not reply.refused:
                # The node may have been restarted as another process: ask it again.
                self._serves.pop(node, None)
            else:
                rank_zero_info(f"Node {node} answered too late: ignored")

    def _greet(self, nodes: Collection[int]) -> None:
        nonces = {node: secrets.token_hex(16) for node in nodes}
        letters = {node: self._hello(nonce) for node, nonce in nonces.items()}
        for node, id in (self._post.send(letters, HELLO_SECONDS) if letters else {}).items():
            self._greeted[node] = (id, nonces[node])

    def _hello(self, nonce: str) -> Letter:
        request = Request("hello", nonce, "", settings=self._settings)
        return Letter(request_records(request), most_bytes(clients=len(self._clients)))

    def _hear_greeted(self) -> None:
        of_id = {id: node for node, (id, _) in self._greeted.items()}
        for id, reply in self._post.collect(list(of_id)).items() if of_id else ():
            node = of_id[id]
            _, nonce = self._greeted.pop(node)
            answer = _read(reply, nonce, ())
            trouble = answer.reason if isinstance(answer, Failure) else answer.trouble
            clients: frozenset[int] = frozenset() if isinstance(answer, Failure) else frozenset(answer.clients)
            if unknown := sorted(clients - self._clients):
                trouble = printable(f"Expected clients from 0 to {len(self._clients) - 1} but got {unknown[:10]}")
                clients &= self._clients
            if not trouble:
                self._admit(node, clients)
                continue
            if trouble != self._refused.get(node, (0.0, ""))[1]:  # warn once, although the node is asked again
                rank_zero_warn(f"Node {node} of clients {sorted(clients)} cannot take part: {trouble}")
            self._refused[node] = (self._clock() + AGAIN_SECONDS, trouble)

    def _admit(self, node: int, clients: frozenset[int]) -> None:
        if twice := clients.intersection(frozenset().union(*self._present().values())):
            rank_zero_warn(f"Node {node} serves clients {sorted(twice)}, as another does: it stands by")
        self._serves[node] = clients
        self._refused.pop(node, None)

    def ask(self, requests: Mapping[int, Request], deadline: float, wanted: int) -> dict[int, Answer | Failure]:
        """Send requests to nodes, and wait until enough clients have answered, or until the deadline.

        Args:
            requests: by node.
            deadline: in seconds.
            wanted: the number of answered clients that ends the wait.

        Returns:
            By node, its answer, or a failure.
        """
        until = self._clock() + deadline
        letters = {
            node: Letter(request_records(request), most_bytes(orders=len(request.orders), entries=self._entries))
            for node, request in requests.items()
        }
        sent = self._post.send(letters, deadline) if letters else {}
        waiting = {id: node for node, id in sent.items()}
        answers: dict[int, Answer | Failure] = {}
        answered = 0
        while waiting and answered < wanted and self._clock() < until:
            replies = self._post.collect(list(waiting))
            for id, reply in replies.items():
                node = waiting.pop(id)
                request = requests[node]
                answers[node] = _read(reply, request.nonce, [order.task.client for order in request.orders])
                answered += len(request.orders)
            if not replies:
                self._sleep(POLL_SECONDS)
        why = "enough others had answered" if answered >= wanted else f"no answer within {deadline:g} s"
        self._overdue |= {node: id for id, node in waiting.items()}
        missing = {node: Failure(why, late=True) if node in sent else Failure(NOT_TAKEN) for node in requests}
        return {node: answers.get(node, missing[node]) for node in requests}


def _read(reply: RecordDict | Failure, nonce: str, asked: Collection[int]) -> Answer | Failure:
    if isinstance(reply, Failure):
        return reply
    try:
        return read_answer(reply, nonce, list(asked))
    except MalformedMessage as error:
        return Failure(str(error), refused=True)
