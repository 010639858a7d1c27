"""The base class of measures that are made of the values of another measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.question import ClientProbe
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value


class OfValue(Value):
    """Passes everything on to another measure, whose state it keeps and whose values it writes beside its own.

    Args:
        of: the other measure.
    """

    def __init__(self, of: Value) -> None:
        self.of = of
        self.reads_server_data, self.asks_clients = of.reads_server_data, of.asks_clients

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self.of.setup(facts)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self.of.begin_round(round, lr)

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:  # noqa: D102
        self.of.inquire(round, cohort, probe)

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self.of.observe(update, index, report)

    def client_values(self) -> dict[str, Mapping[int, float]]:
        """Return its values, and those that they are made of."""
        return {**super().client_values(), **self.of.client_values()}

    def end_round(self, round: int) -> None:  # noqa: D102
        self.of.end_round(round)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"of": self.of.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.of.load_state_dict(dict(state["of"]))
