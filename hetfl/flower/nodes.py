"""The nodes that are online, the clients that they serve, and the answers that the server waits for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from hetfl.errors import ConfigurationError
from hetfl.flower.letters import Failure, Letter, Post, Sent, read_reply
from hetfl.flower.messages import Answer, Request, request_records
from hetfl.flower.metered import most_bytes
from hetfl.flower.patience import Patience
from hetfl.flower.register import Register
from hetfl.flower.state_owners import Participant, StateOwners
from hetfl.printable import printable

POLL_SECONDS = 0.2
NOT_TAKEN = "Flower did not take it"
HELLO_SECONDS = 600.0
"""Seconds that a node has to say which clients it serves."""
AGAIN_SECONDS = 10.0
"""Seconds after which a node that could not take part is asked again: it may have been restarted."""
REMIND_SECONDS = 60.0
"""Seconds between two reports of the same missing clients."""
CHANGE_SECONDS = 5.0
"""Least seconds between two reports of missing clients."""
VERSIONS = ("hetfl", "torch", "Flower")
"""Entries in which a node is compared with the server, too."""


class Nodes:
    """The nodes of a federation.

    When a node appears, it is asked which clients it serves. A node that misses a deadline gets no further requests
    until its late answer arrives, which is ignored: so it delays only one round.

    Args:
        post: carries messages.
        clock: returns monotonic seconds.
        sleep: waits for some seconds.
        register: reports what happens.
        names: names of nodes whose keys are registered, by node.
        surroundings: versions of this side by name.
        stopped: returns the number of a signal that ends the wait for nodes; None: there is none.
    """

    def __init__(
        self,
        post: Post,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        register: Register | None = None,
        names: Mapping[int, str] | None = None,
        surroundings: Mapping[str, str] | None = None,
        stopped: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._post, self._clock, self._sleep, self._stopped = post, clock, sleep, stopped
        self.register, self.owners = register or Register(), StateOwners(clock, Patience().takeover)
        self._names, self._surroundings = dict(names or {}), dict(surroundings or {})
        self._participants: dict[int, Participant] = {}
        self._greeted: dict[int, tuple[str, str]] = {}  # by node, id and nonce of the unanswered hello request
        self._overdue: dict[int, str] = {}  # by node, id of the message that it has not answered in time
        self._activated: Mapping[int, str] = {}  # by node that was online, when it was activated
        self._refused: dict[int, tuple[float, str]] = {}  # by node, time of the next hello request, and the reason
        self._settings: Mapping[str, str] = {}
        self._clients: frozenset[int] = frozenset()  # all clients of the federation
        self._entries = 0
        self._states: dict[str, str] = {}  # of nodes with registered keys, by name
        self._first: Participant | None = None  # the first node, with which others are compared

    def serving(self, client: int, has_state: bool = True) -> int | None:
        """Return the node that is asked for a client; None if there is none.

        Args:
            client: the client.
            has_state: whether the client has a state that only its own node has.
        """
        serving = {node: each for node, each in self._present().items() if client in each.clients}
        return self.owners.choose(client, serving, has_state)

    def participant(self, node: int) -> Participant:
        """Return a node that takes part, or did."""
        return self._participants.get(node, Participant(f"{node}"))

    def _present(self) -> dict[int, Participant]:
        return {node: participant for node, participant in self._participants.items() if node not in self._overdue}

    def gather(self, settings: Mapping[str, str], clients: frozenset[int], entries: int, patience: Patience) -> None:
        """Wait until every client has a node, or until the time is over and some clients have one.

        Args:
            settings: the settings in which nodes must agree with the server.
            clients: all clients.
            entries: entries of the global model, which bound the size of an answer.
            patience: how long to wait, and when a second node takes over a client.

        Raises:
            ConfigurationError: no node that can take part appeared in time.
            SystemExit: a signal ended the wait.
        """
        self._settings, self._clients, self._entries = settings, clients, entries
        self.owners.takeover = patience.takeover
        until, reported, last_missing = self._clock() + patience.start, -REMIND_SECONDS, [-1]
        while True:
            self.refresh()
            self._check_wait(until, patience.start)
            served = (participant.clients for participant in self._present().values())
            missing, now = sorted(clients.difference(*served)), self._clock()
            if not missing:
                return self.register.missing([], 0.0)
            if now - reported >= (CHANGE_SECONDS if missing != last_missing else REMIND_SECONDS):
                self.register.missing(missing, max(0.0, until - now))
                reported, last_missing = now, missing
            if now >= until:
                return self.register.without(missing, patience.start)
            self._sleep(POLL_SECONDS)

    def wait(self, seconds: float) -> None:
        """Update the nodes, and wait for some seconds until one takes part: a round without any would train nothing.

        Raises:
            ConfigurationError: no node came in time.
            SystemExit: a signal ended the wait.
        """
        self.refresh()
        if not self._present():
            self.register.report("waiting", f"no node is there; the round waits for one for up to {seconds:g} s")
        until = self._clock() + seconds
        while not self._present():
            self._check_wait(until, seconds)
            self._sleep(POLL_SECONDS)
            self.refresh()

    def _check_wait(self, until: float, seconds: float) -> None:
        if number := self._stopped():
            raise SystemExit(128 + number)
        if self._clock() >= until and not self._present():
            raise ConfigurationError(f"Expected a node that can take part within {seconds:g} s but none came")

    def refresh(self) -> None:
        """Update the nodes: forget those that are offline, read late answers, and ask new ones for their clients."""
        activated = self._post.online()
        online = {node for node, when in activated.items() if self._activated.get(node, when) == when}
        for node in [node for node in self._participants if node not in online]:
            self.register.gone(self._participants.pop(node))
        for known in (self._greeted, self._overdue, self._refused):
            for node in [node for node in known if node not in online]:
                del known[node]
        self._activated = activated
        self._read_overdue()
        self._read_greeted()
        excluded = {node for node, (until, _) in self._refused.items() if self._clock() < until}
        excluded |= self._participants.keys() | self._greeted.keys()
        self._greet([node for node in sorted(activated) if node not in excluded])
        self.register.seen(self._present().values())

    def _read_overdue(self) -> None:
        late = {id: node for node, id in self._overdue.items()}
        for id, reply in self._post.collect(list(late)).items() if late else ():
            node = late[id]
            del self._overdue[node]
            if isinstance(reply, Failure) and not reply.refused:
                self._participants.pop(node, None)  # it may be another process now: ask it again
            else:
                self.register.back(self.participant(node))

    def _greet(self, nodes: Collection[int]) -> None:
        nonces = {node: secrets.token_hex(16) for node in nodes}
        hello = Request("hello", "", "", settings=self._settings)
        letters = {node: self._letter(replace(hello, nonce=nonce)) for node, nonce in nonces.items()}
        for node, id in (self._post.send(letters, HELLO_SECONDS) if letters else {}).items():
            self._greeted[node] = (id, nonces[node])

    def _tell(self, node: int, text: str) -> None:
        """Send a node a line for its operator; the answer is not waited for."""
        self._post.send({node: self._letter(Request("note", secrets.token_hex(16), "", note=text))}, HELLO_SECONDS)

    def _letter(self, request: Request) -> Letter:
        return Letter(request_records(request), most_bytes(clients=len(self._clients)))

    def _read_greeted(self) -> None:
        of_id = {id: node for node, (id, _) in self._greeted.items()}
        for id, reply in self._post.collect(list(of_id)).items() if of_id else ():
            node = of_id[id]
            _, nonce = self._greeted.pop(node)
            answer = read_reply(reply, nonce, ())
            trouble = answer.reason if isinstance(answer, Failure) else answer.trouble
            clients: frozenset[int] = frozenset() if isinstance(answer, Failure) else frozenset(answer.clients)
            if unknown := sorted(clients - self._clients):
                trouble = printable(f"Expected clients from 0 to {len(self._clients) - 1} but got {unknown[:10]}")
                clients &= self._clients
                self._tell(node, f"the server refuses this node: {trouble}")
            if not trouble and not isinstance(answer, Failure):
                self._forget_replaced(answer.name, clients, answer.states)
                name, states = self._name(node, answer.name), answer.states or f"node {node}"
                self._admit(node, Participant(name, clients, states, answer.surroundings))
                continue
            name = self._name(node, "" if isinstance(answer, Failure) else answer.name)
            if trouble != self._refused.get(node, (0.0, ""))[1]:  # once, although the node is asked again
                self.register.refused(name, sorted(clients), trouble)
            self._refused[node] = (self._clock() + AGAIN_SECONDS, trouble)

    def _forget_replaced(self, own_name: str, clients: frozenset[int], states: str) -> None:
        """Forget a node that has returned with another id; the SuperLink takes the old id for online for a minute."""
        same = [node for node, each in self._participants.items() if (each.clients, each.states) == (clients, states)]
        for node in [node for node in same if self._participants[node].name.partition("#")[0] == own_name]:
            del self._participants[node]

    def _name(self, node: int, own_name: str) -> str:
        """Return the name of a node's registered key, or the one that it gives itself; no two nodes have the same."""
        name, taken = self._names.get(node, own_name) or f"{node}", {each.name for each in self._participants.values()}
        return next(each for each in (name, *(f"{name}#{n}" for n in range(2, len(taken) + 3))) if each not in taken)

    def _admit(self, node: int, participant: Participant) -> None:
        others = [other for other in self._present().values() if other.clients & participant.clients]
        self._participants[node] = participant
        if node in self._names:  # a key is one node's, also if its disk is another one
            self.owners.move(self._states.get(participant.name, participant.states), participant.states)
            self._states[participant.name] = participant.states
        self._refused.pop(node, None)
        self.register.joined(participant)
        for first in others[:1]:
            shared, twice = first.states == participant.states, sorted(first.clients & participant.clients)
            self._tell(node, self.register.stands_by(participant, twice, first.name, shared, self.owners.takeover))
        versions = {name: self._surroundings[name] for name in VERSIONS if name in self._surroundings}
        self.register.compared(participant, "the server", versions)
        if self._first is not None:
            self.register.compared(participant, f"node {self._first.name}", self._first.surroundings)
        self._first = self._first or participant

    def send(self, requests: Mapping[int, Request], deadline: float) -> dict[str, Sent]:
        """Send requests to nodes; return those that Flower took, by id of the message.

        Args:
            requests: by node.
            deadline: seconds until which an answer counts.
        """
        letters = {
            node: Letter(request_records(request), most_bytes(orders=len(request.orders), entries=self._entries))
            for node, request in requests.items()
        }
        now, sent = self._clock(), self._post.send(letters, deadline) if letters else {}
        return {id: Sent(node, requests[node], now, now + deadline) for node, id in sent.items()}

    def collect(self, waiting: dict[str, Sent]) -> list[tuple[Sent, Answer | Failure]]:
        """Return the answers that have arrived, and failures of nodes whose deadline is over; wait shortly for one.

        Args:
            waiting: requests by id; those that are returned are removed.
        """
        answers: list[tuple[Sent, Answer | Failure]] = []
        for id, reply in (self._post.collect(list(waiting)) if waiting else {}).items():
            letter = waiting.pop(id)
            answers.append((letter, read_reply(reply, letter.request.nonce, letter.clients)))
            self._note(*answers[-1])
        for id, letter in [(id, letter) for id, letter in waiting.items() if self._clock() >= letter.until]:
            del waiting[id]
            answers.append(self._late(id, letter, f"no answer within {letter.until - letter.since:g} s"))
        if not answers:
            self._sleep(POLL_SECONDS)
        return answers

    def ask(self, requests: Mapping[int, Request], deadline: float, wanted: int) -> dict[int, Answer | Failure]:
        """Send requests to nodes, and wait until enough clients have answered, or until the deadline.

        Args:
            requests: by node.
            deadline: in seconds.
            wanted: the number of answered clients that ends the wait.

        Returns:
            By node, its answer, or a failure.
        """
        waiting, answered = self.send(requests, deadline), 0
        answers: dict[int, Answer | Failure] = dict.fromkeys(requests, Failure(NOT_TAKEN))
        while waiting and answered < wanted:
            for letter, answer in self.collect(waiting):
                answers[letter.node] = answer
                answered += 0 if isinstance(answer, Failure) and answer.late else len(letter.clients)
        for id, letter in waiting.items():
            answers[letter.node] = self._late(id, letter, "enough others had answered")[1]
        return answers

    def _late(self, id: str, letter: Sent, why: str) -> tuple[Sent, Failure]:
        """Register that a node has not answered in time; it gets no requests until it has."""
        self._overdue[letter.node] = id
        self.register.late(self.participant(letter.node), letter.round, letter.clients, why)
        return letter, Failure(why, late=True)

    def _note(self, letter: Sent, answer: Answer | Failure) -> None:
        """Register an answer."""
        participant, request = self.participant(letter.node), letter.request
        if isinstance(answer, Failure):
            self.register.failed(participant, letter.round, letter.clients, answer)
        elif request.job == "train":
            up, seconds = sum(len(report.payload) for report in answer.reports), self._clock() - letter.since
            self.register.served(participant, letter.round, len(letter.clients), seconds, up, request.size)
