"""Which of several nodes that serve a client is asked: the one that keeps the client's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Guest:
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


class Homes:
    """The folder of states that each client's state is in, as an accepted update was the last to show it.

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
        self._away: dict[int, float] = {}  # since when the home of a client has not been there

    def choose(self, client: int, guests: Mapping[int, Guest], at_stake: bool = True) -> int | None:
        """Return the node to ask; None: none is there, or only one that must still wait.

        Args:
            client: the client.
            guests: the nodes that serve it and can be asked.
            at_stake: whether the client has a state, which another node than its home lacks.
        """
        home = self._states.get(client)
        at_home = next((node for node, guest in guests.items() if home in (None, guest.states)), None)
        if at_home is not None:
            self._away.pop(client, None)
            return at_home
        since = self._away.setdefault(client, self._clock())
        if not guests or (at_stake and self._clock() - since < self.takeover):
            return None
        return next(iter(guests))

    def remaining(self, client: int) -> float:
        """Return the seconds until another node takes over a client whose home is away."""
        return max(0.0, self.takeover - (self._clock() - self._away.get(client, self._clock())))

    def settle(self, client: int, guest: Guest) -> None:
        """Record that a node keeps the state of a client's accepted update."""
        self._states[client] = guest.states

    def move(self, before: str, now: str) -> None:
        """Record that a node has another folder of states than before."""
        self._states = {client: now if states == before else states for client, states in self._states.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the homes, for a checkpoint."""
        return {"homes": {str(client): states for client, states in self._states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; earlier checkpoints have no homes."""
        self._states = {int(client): str(states) for client, states in state.get("homes", {}).items()}
