"""The base class of measures that ask clients about their data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.question import ClientProbe, Question
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value


class DataValue(Value):
    """Asks the clients of a cohort about their data before they train; their answers are their values.

    A client whose answer does not depend on the model is asked once, and keeps its value. Clients on Flower answer no
    questions, so such a measure is refused there.
    """

    asks_clients = True

    again: bool = False
    """Whether a client is asked in every round that it takes part in, as its answer depends on the model."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}
        self._num_clients = 0
        self._seen: list[int] = []

    @abstractmethod
    def measured(self, clients: Sequence[int], probe: ClientProbe) -> Mapping[int, float]:
        """Return the values of clients that answer.

        Args:
            clients: ids, at least one.
            probe: asks them.
        """

    def setup(self, facts: Facts) -> None:
        """Set the seed and the number of clients; with another number, no client has a value."""
        self.seed = facts.seed
        if facts.num_clients != self._num_clients:
            self._num_clients, self.values = facts.num_clients, {}

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._seen = []

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:  # noqa: D102
        if self.again:
            present = set(cohort)
            self.values = {client: value for client, value in self.values.items() if client not in present}
        if asked := sorted(client for client in cohort if client not in self.values):
            self.values |= self.measured(asked, probe)

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self._seen.append(report.client)

    def of_round(self) -> dict[int, float]:  # noqa: D102
        return {client: self.values[client] for client in sorted(set(self._seen)) if client in self.values}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.values = dict(state["values"])


def single(clients: Sequence[int], question: Question, probe: ClientProbe) -> dict[int, float]:
    """Return by client the answers to a question with one number; a client without a valid answer is left out."""
    return {client: float(numbers[0]) for client, numbers in probe.answers(clients, question).items()}
