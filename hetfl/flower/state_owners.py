"""Which of several nodes that serve a client is asked: the one that keeps the client's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Participant:
    """A node that takes part.

    Attributes:
        name: of the node.
        clients: that it serves.
        states: identity of its folder of states; nodes that share a folder have the same.
        surroundings: versions, threads and kernels by name.
    """

    name: str
    clients: frozenset[int] = frozenset()
    states: str = ""
    surroundings: Mapping[str, str] = field(default_factory=dict)


class StateOwners:
    """By client the folder of states with its state: that of the node whose update was accepted last.

    A second node of a client does not have the client's state. If it were asked because the first node missed one
    deadline, the state would be lost. So it is asked only once the first has been away for long, or if the two share
    their states, or if there is no state.

    Args:
        clock: returns monotonic seconds.
        takeover: seconds after which another node takes over a client.
    """

    def __init__(self, clock: Callable[[], float], takeover: float) -> None:
        self._clock, self.takeover = clock, takeover
        self._states: dict[int, str] = {}
        self._away: dict[int, float] = {}  # when the owner of a client's state was first missed

    def choose(self, client: int, participants: Mapping[int, Participant], has_state: bool = True) -> int | None:
        """Return the node to ask; None: no node serves the client, or only one that must still wait.

        Args:
            client: the client.
            participants: the nodes that serve it and can be asked.
            has_state: whether the client has a state, which other nodes lack.
        """
        folder = self._states.get(client)
        owner = next((node for node, participant in participants.items() if folder in (None, participant.states)), None)
        if owner is not None:
            self._away.pop(client, None)
            return owner
        since = self._away.setdefault(client, self._clock())
        if not participants or (has_state and self._clock() - since < self.takeover):
            return None
        return next(iter(participants))

    def remaining(self, client: int) -> float:
        """Return the seconds until another node takes over a client whose owner is missing."""
        return max(0.0, self.takeover - (self._clock() - self._away.get(client, self._clock())))

    def settle(self, client: int, participant: Participant) -> None:
        """Record that a node keeps the state of a client's accepted update."""
        self._states[client] = participant.states

    def move(self, before: str, now: str) -> None:
        """Record that a node has another folder of states than before."""
        self._states = {client: now if states == before else states for client, states in self._states.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the owners, for a checkpoint."""
        return {"owners": {str(client): states for client, states in self._states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; earlier checkpoints have no owners."""
        self._states = {int(client): str(states) for client, states in state.get("owners", {}).items()}
