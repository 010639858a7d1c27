"""How long a round waits for its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetfl.errors import ConfigurationError


@dataclass(frozen=True)
class Patience:
    """How long a round waits for its clients.

    Args:
        deadline: seconds that nodes have for an answer.
        enough: share of the clients asked whose answers end the wait. With more clients selected than needed, a round
            does not wait for the slowest.
        start: seconds that the first round waits until every client has a node.

    Raises:
        ConfigurationError: a number is out of range.
    """

    deadline: float = 600.0
    enough: float = 1.0
    start: float = 300.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("deadline", "start"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"Expected {name}, in seconds, above 0 but got {getattr(self, name)}")
        if not 0 < self.enough <= 1:
            raise ConfigurationError(f"Expected enough, a share of clients, in (0, 1] but got {self.enough}")
