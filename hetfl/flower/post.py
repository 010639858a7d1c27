"""Transport of the server's messages over Flower's Grid."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from httpx import TransportError

from hetfl.flower.letters import Failure, Letter
from hetfl.flower.metered import pull
from hetfl.reading import TooMuch

AT_ONCE = 16
"""Largest number of answers that one call begins to pull; with more nodes, each answer is tried less often."""
PULL_SECONDS = 0.2
"""Seconds that :meth:`FlowerPost.collect` waits for running pulls."""


class FlowerPost:
    """Messages over Flower.

    Flower announces an answer before all of it has arrived, and a pull then waits for the rest: for minutes if the node
    has died, and for hours if it sends slowly. So each answer is pulled in a separate thread. Then no answer delays
    another one, and no round lasts longer than its deadline.

    Args:
        grid: of the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._pulled: dict[str, RecordDict | Failure | Exception] = {}
        self._tried: dict[str, float] = {}  # time of the last pull by id
        self._pulls: dict[str, threading.Thread] = {}
        self._largest: dict[str, int] = {}  # the most bytes of an answer by id

    def online(self) -> Mapping[int, str]:
        """Return the nodes with a recent heartbeat, and when each was activated.

        A node that has just died is still among them. One with a registered key has its number again after a restart.
        """
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def send(self, letters: Mapping[int, Letter], seconds: float) -> dict[int, str]:
        """Push messages that expire after so many seconds; return the ids of those that Flower took, by node."""
        messages = [Message(letter.content, node, MessageType.TRAIN, ttl=seconds) for node, letter in letters.items()]
        ids = list(self._grid.push_messages(messages))
        sent = {node: id for node, id in zip(letters, ids, strict=False) if id}
        self._largest |= {id: letters[node].largest for node, id in sent.items()}
        return sent

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        """Return the answers that have arrived, by id; a failure where Flower or the node could not handle a message.

        An answer that cannot be read is a failure of its node only.

        Raises:
            Exception: the SuperLink cannot be reached.
        """
        idle = [id for id in ids if id not in self._pulls and id not in self._pulled]
        for id in sorted(idle, key=lambda id: self._tried.get(id, 0.0))[:AT_ONCE]:
            self._tried[id] = time.monotonic()
            self._pulls[id] = threading.Thread(target=self._pull, args=(id,), daemon=True)
            self._pulls[id].start()
        until = time.monotonic() + PULL_SECONDS
        for thread in [self._pulls[id] for id in ids if id in self._pulls]:
            thread.join(max(0.0, until - time.monotonic()))
        self._pulls = {id: thread for id, thread in self._pulls.items() if thread.is_alive()}
        answers: dict[str, RecordDict | Failure] = {}
        for id in ids:
            if id in self._pulled and id not in self._pulls:
                answer = self._pulled.pop(id)
                self._tried.pop(id, None)
                self._largest.pop(id, None)
                if isinstance(answer, Exception):
                    raise answer
                answers[id] = answer
        return answers

    def _pull(self, id: str) -> None:
        """Pull one answer, and wait until all of it has arrived."""
        try:
            for message in pull(self._grid, id, self._largest.get(id, 0)):
                self._pulled[id] = _content(message, id)
        except TooMuch as error:
            self._pulled[id] = Failure(str(error), refused=True)
        except (TransportError, OSError) as error:  # the SuperLink cannot be reached
            self._pulled[id] = error
        except Exception as error:
            self._pulled[id] = self._cause(error)

    def _cause(self, error: Exception) -> Failure | Exception:
        """Return the cause of an exception in a pull: a failure of the node if the SuperLink still answers.

        Flower parses a node's bytes after the SuperLink has delivered them. Malformed bytes raise exceptions of many
        libraries: protobuf's ``DecodeError``, ``JSONDecodeError``, ``UnicodeDecodeError``, ``ValueError``,
        ``KeyError``, ``IndexError``, ``TypeError``, ``AttributeError``, ``RecursionError``, ``MemoryError``.

        Returns:
            A failure of the node, or the exception of the SuperLink.
        """
        try:
            self.online()
        except Exception as gone:
            return gone
        return Failure(f"Expected an answer that can be read but got {type(error).__name__}: {error}", refused=True)


def _content(message: Message, id: str) -> RecordDict | Failure:
    """Return the content of an answer to a message. The node chooses all of it, its id and type included."""
    if message.metadata.reply_to_message_id != id:
        return Failure("Expected an answer to the request but got one to another message", refused=True)
    if message.has_error():
        return Failure(f"Flower: {message.error.reason}")
    content: object = message.content
    if not isinstance(content, RecordDict):
        return Failure(f"Expected records but got {type(content).__name__}", refused=True)
    return content
