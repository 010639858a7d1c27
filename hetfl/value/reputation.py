"""A running mean of a client's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.value.base import Value
from hetfl.value.gradient_cosine import GradientCosine
from hetfl.value.of_value import OfValue


class Reputation(OfValue):
    r"""A client's reputation R: a running mean of the values of its updates, which new values change less and less.

    .. math:: R_k \leftarrow \max(\lambda_t R_k + (1 - \lambda_t) v_k,\ 10^{-3}), \qquad
        \lambda_t = 1 - \frac{1 - \lambda_0}{t + 1}, \qquad R \leftarrow R / \textstyle\sum_k R_k

    with t the number of earlier updates of the client, so that a client that is away keeps its reputation, and the sum
    over all clients. All clients begin at 1 / N, and a client has no value before its first update. As values are not
    normalised and R is, new values weigh N times more than the formula says. Xu, Lyu, Ma, Miao, Foo, Low: Gradient
    Driven Rewards to Guarantee Fairness in Collaborative Machine Learning, NeurIPS 2021, has the idea with a constant
    :math:`\lambda`.

    Args:
        tradeoff: :math:`\lambda_0`, in [0, 1): how much of the first reputation stays after the first update.
        of: the value; None: :class:`GradientCosine` with the client in the mean.
        least: the smallest reputation before it is divided by the sum.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, tradeoff: float = 0.5, of: Value | None = None, least: float = 1e-3) -> None:
        if not 0.0 <= tradeoff < 1.0 or not 0.0 < least < 1.0:
            raise ConfigurationError(f"Expected tradeoff in [0, 1) and least in (0, 1) but got {tradeoff}, {least}")
        super().__init__(of or GradientCosine(leave_out=False))
        self.tradeoff, self.least = tradeoff, least
        self.reputations: list[float] = []
        self.updates: list[int] = []
        self._next: tuple[list[float], list[int]] | None = None  # reputations before they are divided, and updates

    def setup(self, facts: Facts) -> None:
        """Set the number of clients; with another number, all reputations begin anew."""
        super().setup(facts)
        if len(self.reputations) != facts.num_clients:
            self.reputations = [1.0 / facts.num_clients] * facts.num_clients
            self.updates = [0] * facts.num_clients

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._next = None

    def of_round(self) -> dict[int, float]:
        """Return the reputations of the clients with an update, those of the round included."""
        updates = self._after()[1]
        return {client: share for client, share in enumerate(self._shares()) if updates[client]}

    def _after(self) -> tuple[list[float], list[int]]:
        """Return all reputations before they are divided, and the numbers of updates, with the round's updates."""
        if self._next is None:
            values, reputations, updates = self.of.of_round(), list(self.reputations), list(self.updates)
            for client, value in values.items():
                kept = 1.0 - (1.0 - self.tradeoff) / (updates[client] + 1)
                reputations[client] = max(kept * reputations[client] + (1.0 - kept) * value, self.least)
                updates[client] += 1
            self._next = reputations, updates
        return self._next

    def _shares(self) -> list[float]:
        """Return the reputations of all clients, with the round's updates."""
        reputations, _ = self._after()
        total = sum(reputations)
        return [reputation / total for reputation in reputations]

    def end_round(self, round: int) -> None:  # noqa: D102
        self.reputations, self.updates = self._shares(), self._after()[1]
        super().end_round(round)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "reputations": list(self.reputations), "updates": list(self.updates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.reputations, self.updates = list(state["reputations"]), list(state["updates"])
        super().load_state_dict(state)
