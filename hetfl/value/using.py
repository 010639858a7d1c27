"""The base class of pieces that use the values of clients' earlier updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetfl.layout import Index
from hetfl.piece import Facts, Piece
from hetfl.question import ClientProbe
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value, finite


class UsesValues(Piece):
    """Runs a measure, and keeps the last value of each client.

    Attributes:
        value: the measure.
        values: by client, the last known value, of a round that has ended.
    """

    value: Value
    values: dict[int, float]
    _num_clients: int = 0

    def use(self, value: Value) -> None:
        """Set the measure; for constructors."""
        self.value, self.values = value, {}
        self.reads_server_data, self.asks_clients = value.reads_server_data, value.asks_clients

    def setup(self, facts: Facts) -> None:
        """Set the clients; with another number, no values are known."""
        if facts.num_clients != self._num_clients:
            self._num_clients, self.values = facts.num_clients, {}
        super().setup(facts)
        self.value.setup(facts)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self.value.begin_round(round, lr)

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:  # noqa: D102
        self.value.inquire(round, cohort, probe)

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self.value.observe(update, index, report)

    def client_values(self) -> dict[str, Mapping[int, float]]:  # noqa: D102
        return self.value.client_values()

    def end_round(self, round: int) -> None:
        """Take over the values of the round.

        Raises:
            ConfigurationError: a value is not finite.
        """
        self.values |= finite(self.value.of_round(), self.value.describe(), round)
        self.value.end_round(round)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"values": dict(self.values), "value": self.value.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.values = dict(state["values"])
        self.value.load_state_dict(dict(state["value"]))
