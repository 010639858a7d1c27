"""The share of a client's updates that were good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.value.base import Value
from hetfl.value.gradient_cosine import GradientCosine
from hetfl.value.of_value import OfValue


class BetaReputation(OfValue):
    r"""The expected share of good updates of a client, by the updates so far.

    .. math:: R_k = \frac{g_k + 1}{g_k + b_k + 2}

    with g of a client's updates good and b bad: the mean of a Beta distribution that begins uniform. An update is good
    if its value by another measure is above ``threshold``. A client that has never reported has 1/2, and a client that
    is away keeps its reputation. Ismail, Josang: The Beta Reputation System, 2002.

    Needs, leaks and costs what the other measure does.

    Args:
        of: the measure; None: :class:`GradientCosine` without the client in the mean.
        threshold: values above it are good.

    Raises:
        ConfigurationError: the threshold is not finite.
    """

    def __init__(self, of: Value | None = None, threshold: float = 0.0) -> None:
        if not -float("inf") < threshold < float("inf"):
            raise ConfigurationError(f"Expected a finite threshold for BetaReputation but got {threshold}")
        super().__init__(of or GradientCosine())
        self.threshold = threshold
        self.good: list[int] = []
        self.bad: list[int] = []
        self._next: tuple[list[int], list[int]] | None = None  # good and bad, with the round's updates

    def setup(self, facts: Facts) -> None:
        """Set the number of clients; with another number, all reputations begin anew."""
        super().setup(facts)
        if len(self.good) != facts.num_clients:
            self.good, self.bad = [0] * facts.num_clients, [0] * facts.num_clients

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._next = None

    def _counts(self) -> tuple[list[int], list[int]]:
        """Return the numbers of good and of bad updates of every client, with the round's."""
        if self._next is None:
            good, bad = self._next = list(self.good), list(self.bad)
            for client, value in self.of.of_round().items():
                (good if value > self.threshold else bad)[client] += 1
        return self._next

    def of_round(self) -> dict[int, float]:
        """Return the reputations of all clients, with the round's updates."""
        pairs = zip(*self._counts(), strict=True)
        return {client: (good + 1) / (good + bad + 2) for client, (good, bad) in enumerate(pairs)}

    def end_round(self, round: int) -> None:  # noqa: D102
        self.good, self.bad = self._counts()
        super().end_round(round)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "good": list(self.good), "bad": list(self.bad)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.good, self.bad = list(state["good"]), list(state["bad"])
        super().load_state_dict(state)
