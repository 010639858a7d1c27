"""How long a round waits for its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetfl.errors import ConfigurationError

PIECE_BYTES = 1 << 19
"""Bytes of the pieces in which arrays travel; Flower's own are ten times as long."""
PIECES_AT_ONCE, PIECE_SECONDS = 2, 30.0
"""Pieces that Flower sends at once, and seconds that it waits for the reply to each before it sends it again."""


@dataclass(frozen=True)
class Patience:
    """How long a round waits for its clients.

    Args:
        deadline: seconds that nodes have to train.
        enough: share of the clients asked whose answers end the wait. With more clients selected than needed, a round
            does not wait for the slowest.
        start: seconds that the first round waits until every client has a node.
        statistics_deadline: seconds that nodes have to gather static batch-norm statistics; None: as to train.
        losses_deadline: seconds that nodes have to evaluate losses; None: as to train.
        takeover: seconds without a client's node after which another node that serves the client is asked.

    Raises:
        ConfigurationError: a number is out of range.
    """

    deadline: float = 600.0
    enough: float = 1.0
    start: float = 300.0
    statistics_deadline: float | None = None
    losses_deadline: float | None = None
    takeover: float = 600.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("deadline", "start", "statistics_deadline", "losses_deadline", "takeover"):
            seconds = getattr(self, name)
            least = 0.0 if name == "takeover" else math.ulp(0.0)
            if seconds is not None and not least <= seconds < math.inf:
                bound = "of at least 0" if name == "takeover" else "above 0"
                raise ConfigurationError(f"Expected {name}, in seconds, {bound} but got {seconds}")
        if not 0 < self.enough <= 1:
            raise ConfigurationError(f"Expected enough, a share of clients, in (0, 1] but got {self.enough}")

    def of(self, job: str) -> float:
        """Return the seconds that nodes have for a job.

        Args:
            job: ``train``, ``statistics`` or ``losses``.
        """
        seconds: float | None = getattr(self, f"{job}_deadline", None)
        return self.deadline if seconds is None else seconds
