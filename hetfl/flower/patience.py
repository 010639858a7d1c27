"""When a round has waited long enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetfl.errors import ConfigurationError


@dataclass(frozen=True)
class Patience:
    """When a round has waited long enough.

    Args:
        deadline: seconds that nodes have for an answer.
        enough: share of the clients asked whose answers are enough: with more clients selected than are needed, the
            slowest are not waited for.
        start: seconds that the first round waits for a node for every client.

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
