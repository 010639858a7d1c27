"""What a client's update alone is worth on data that is not its own."""

from __future__ import annotations

from hetfl.value.coalitions import CoalitionValue


class Individual(CoalitionValue):
    r"""What the model with a client's update alone gains on the server's data: :math:`v_k = v(\{k\}) - v(\emptyset)`.

    The server's data stands for that of the other clients, so no client is sent another client's model. It does not ask
    what the others bring: two copies of a client have the same value as one. It takes one evaluation per client, and
    one of the model before the round.
    """

    def members_values(self) -> list[float]:  # noqa: D102
        nothing = self.worth(frozenset())
        return [self.worth(frozenset({number})) - nothing for number in range(len(self.cohort.members))]
