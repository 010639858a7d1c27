"""What pieces share that use the values of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetfl.question import ClientProbe
from hetfl.value.base import Value, finite


class Valued:
    """Keeps the last value of every client by a measure, whose calls it passes on; to be derived from beside a piece.

    A value of a round is known from the end of the round on. The piece passes on ``setup``, ``begin_round`` and the
    updates itself.

    Attributes:
        value: the measure.
        values: the last value of each client that has one, by id.
    """

    value: Value
    values: dict[int, float]
    reads_server_data: bool
    asks_clients: bool

    def keep_values(self, value: Value) -> None:
        """Set the measure; no value is known."""
        self.value, self.values = value, {}
        self.reads_server_data, self.asks_clients = value.reads_server_data, value.asks_clients

    def mean_value(self) -> float:
        """Return the mean of all known values above 0; 0 if there are none."""
        above = [value for value in self.values.values() if value > 0.0]
        return sum(above) / len(above) if above else 0.0

    def value_columns(self) -> dict[str, float]:
        """Return the smallest and the largest known value, as columns of ``metrics.csv``, if there are any."""
        known = self.values.values()
        return {"value/lowest": min(known), "value/highest": max(known)} if known else {}

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:
        """Let the measure ask the round's clients about their data."""
        self.value.inquire(round, cohort, probe)

    def client_values(self) -> dict[str, Mapping[int, float]]:
        """Return the values of the round, for ``values.csv``."""
        return self.value.client_values()

    def end_round(self, round: int) -> None:
        """Take over the values of the round.

        Raises:
            ConfigurationError: a value is not finite.
        """
        self.values |= finite(self.value.of_round(), self.value.describe(), round)
        self.value.end_round(round)

    def state_dict(self) -> dict[str, Any]:
        """Return the known values, and the state of the measure."""
        return {"values": dict(self.values), "value": self.value.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.values = dict(state["values"])
        self.value.load_state_dict(dict(state["value"]))
