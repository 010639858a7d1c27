"""What happens with nodes, as events for the operator and as each node's standing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hetfl.flower.events import Event, Reporter
from hetfl.flower.letters import Failure
from hetfl.flower.standing import Standing, StandingFile, ranges
from hetfl.flower.state_owners import Participant
from hetfl.flower.surroundings import differences

TROUBLE = ("refused", "missing", "differs", "standing by", "memory")
"""Kinds of events that are warnings of a run; of others, the run warns for each client, or they ask nothing."""
NO_BITS = "results need not be equal bit for bit"


def as_warnings(kind: str, text: str, node: str = "", **facts: object) -> None:
    """Report an event as a message of the run, for runs without an operator's log."""
    say = rank_zero_warn if kind in TROUBLE else rank_zero_info
    say(Event(kind, text, node).line().partition(" ")[2])


class Register:
    """Reports events, and keeps the nodes' standings.

    Args:
        report: takes the events.
        file: keeps the standings.
    """

    def __init__(self, report: Reporter = as_warnings, file: StandingFile | None = None) -> None:
        self.report, self.file = report, file or StandingFile()

    def begin_round(self, round: int, rounds: int) -> None:
        """Note the round that runs, from 1, and the number of rounds; 0: no limit."""
        self.file.standings.round, self.file.standings.rounds = round, rounds
        self.file.write()

    def seen(self, participants: Iterable[Participant]) -> None:
        """Note that nodes are online."""
        for participant in participants:
            self._of(participant).last_seen = time.time()
        self.file.write()

    def joined(self, participant: Participant) -> None:
        """Note a node that takes part."""
        of = self._of(participant)
        of.state, of.clients, of.reason, of.last_seen = "serving", ranges([*participant.clients]), "", time.time()
        self.report("joined", f"clients {of.clients}", participant.name, clients=of.clients)
        self.file.write(now=True)

    def stands_by(
        self, participant: Participant, clients: Sequence[int], first: str, shared: bool, takeover: float
    ) -> str:
        """Note a node whose clients another node serves; return the text, which the node is told, too."""
        when = "they share their states" if shared else f"it takes over once that node has been away for {takeover:g} s"
        text = f"node {first} serves clients {ranges([*clients])}, too: {when}"
        self._of(participant).state = "standing by"
        self.report("standing by", text, participant.name)
        return text

    def refused(self, name: str, clients: Sequence[int], trouble: str) -> None:
        """Note a node that cannot take part."""
        of = self.file.standings.of(name)
        of.state, of.reason, of.clients, of.last_seen = "refused", trouble, ranges([*clients]), time.time()
        self.report("refused", f"clients {of.clients} cannot take part: {trouble}", name)
        self.file.write(now=True)

    def compared(self, participant: Participant, other: str, surroundings: Mapping[str, str]) -> None:
        """Report if a node computes with other versions, threads or kernels than another side."""
        if text := differences(participant.surroundings, surroundings, (f"on node {participant.name}", f"on {other}")):
            self.report("differs", f"{text}: {NO_BITS}", participant.name)

    def missing(self, clients: Sequence[int], seconds: float) -> None:
        """Report the clients that have no node yet; an empty list: all have one."""
        self.file.standings.missing = ranges([*clients])
        if clients:
            text = f"no node serves clients {ranges([*clients])} yet; round 1 waits for up to {seconds:.0f} s"
            self.report("waiting", text)
        else:
            self.report("complete", "every client has a node")
        self.file.write(now=True)

    def without(self, clients: Sequence[int], seconds: float) -> None:
        """Report that the first round begins although clients have no node."""
        self.report(
            "missing",
            f"No node serves clients {ranges([*clients])} after {seconds:g} s: the first round begins without them",
        )

    def gone(self, participant: Participant) -> None:
        """Note a node that has no connection any more."""
        self._of(participant).state = "gone"
        self.report("gone", f"it has no connection; clients {ranges([*participant.clients])}", participant.name)
        self.file.write(now=True)

    def served(self, participant: Participant, round: int, clients: int, seconds: float, up: int, down: int) -> None:
        """Note an answer to an order to train."""
        of = self._of(participant)
        of.state, of.last_seen, of.served, of.seconds = "serving", time.time(), of.served + 1, seconds
        of.up_bytes, of.down_bytes = of.up_bytes + up, of.down_bytes + down
        text = f"round {round}: {clients} client{'s' if clients > 1 else ''} in {seconds:.1f} s, {up:,} bytes up"
        facts = {"round": round, "seconds": round_to(seconds), "up_bytes": up, "down_bytes": down}
        self.report("served", f"{text}, {down:,} down", participant.name, **facts)
        self.file.write()

    def late(self, participant: Participant, round: int, clients: Sequence[int], why: str) -> None:
        """Note a node that the server no longer waits for."""
        of = self._of(participant)
        of.state, of.late = "late", of.late + 1
        self.report("late", f"round {round}: clients {ranges([*clients])}: {why}", participant.name, round=round)
        self.file.write(now=True)

    def back(self, participant: Participant) -> None:
        """Note a late answer, which is ignored."""
        of = self._of(participant)
        of.state, of.last_seen = "serving", time.time()
        self.report("back", "answered too late: ignored; it is asked again", participant.name)

    def failed(self, participant: Participant, round: int, clients: Sequence[int], failure: Failure) -> None:
        """Note a message that did not arrive, or an answer that could not be used; only the latter is refused."""
        self._of(participant).refused += len(clients) if failure.refused else 0
        text = f"round {round}: clients {ranges([*clients])}: {failure.reason}"
        self.report("lost", text, participant.name, round=round)

    def answer_refused(self, participant: Participant) -> None:
        """Count a refused answer of a client; the run's messages have the reason."""
        self._of(participant).refused += 1

    def state_lost(self, participant: Participant, round: int, client: int, why: str) -> None:
        """Note a client whose state is lost."""
        self._of(participant).lost += 1
        text = f"round {round}: client {client}: {why}: it begins anew"
        self.report("state lost", text, participant.name, round=round, client=client)

    def _of(self, participant: Participant) -> Standing:
        return self.file.standings.of(participant.name)


def round_to(seconds: float) -> float:
    """Return seconds with three decimals."""
    return float(f"{seconds:.3f}")
