"""Rounds of equal simulated time."""

from __future__ import annotations

import math

from hetfl.errors import ConfigurationError
from hetfl.schedule.staleness import StalenessWeight
from hetfl.schedule.timed import Timed


class SemiSynchronous(Timed):
    r"""The server steps at the simulated times P, 2P, 3P, …, with all updates that arrived since its last step.

    A client that needs longer than a period goes on, and its update counts in the step after its arrival. Without an
    update the models stay as they are.

    Args:
        period: P, simulated seconds.
        concurrency: number of clients that work at a time; None: the selection's ``clients_per_round``.
        staleness: s; None: :class:`~hetfl.schedule.Polynomial`.

    Raises:
        ConfigurationError: the period is not positive and finite, or ``concurrency`` is below 1.
    """

    def __init__(self, period: float, concurrency: int | None = None, staleness: StalenessWeight | None = None) -> None:
        super().__init__(concurrency, staleness)
        if not 0 < period < math.inf:
            raise ConfigurationError(f"Expected period, in seconds, above 0 but got {period}")
        self.period = period

    def limit(self, round: int) -> float:  # noqa: D102
        return (round + 1) * self.period

    def due(self, round: int, accepted: int, now: float) -> bool:  # noqa: D102
        return now >= self.limit(round)
