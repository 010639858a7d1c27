"""Shapley values of the clients of a round."""

from __future__ import annotations

from typing import Literal

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator
from hetfl.value.coalitions import CoalitionValue, Metric
from hetfl.value.shapley import exact, truncated

Method = Literal["exact", "monte_carlo", "gtg"]
"""How Shapley values are computed."""

MOST_EXACT = 10
"""Largest cohort whose coalitions are all evaluated."""


class Shapley(CoalitionValue):
    r"""The Shapley value of each client of a round: the mean of what it adds to a coalition, over all orders.

    - ``exact``: all :math:`2^m` coalitions of a cohort of m clients, m at most 10.
    - ``monte_carlo``: truncated Monte-Carlo (Ghorbani, Zou: Data Shapley, ICML 2019).
    - ``gtg``: GTG-Shapley (Liu et al., ACM TIST 2022, arXiv 2109.02053): every client in turn joins first, and a round
      that changes the worth by at most ``between`` gives all clients 0.

    The values of a round add up to what its model gained, up to the truncation.

    Args:
        method: ``exact``, ``monte_carlo`` or ``gtg``.
        metric: see :class:`~hetfl.value.coalitions.CoalitionValue`.
        within: a permutation ends once the coalition's worth is this close to that of all.
        between: the least change of a round; only for ``gtg``.
        permutations: the most permutations; None: 2 m max(30, m).

    Raises:
        ConfigurationError: a setting is unknown or negative.
    """

    def __init__(
        self,
        method: Method = "gtg",
        metric: Metric = "score",
        within: float = 0.001,
        between: float = 0.01,
        permutations: int | None = None,
    ) -> None:
        super().__init__(metric)
        if within < 0 or between < 0 or (permutations is not None and permutations < 1):
            raise ConfigurationError(
                f"Expected within and between of at least 0, and permutations of at least 1, but got {within}, "
                f"{between}, {permutations}"
            )
        self.method = choice("method", method, Method)
        self.within, self.between, self.permutations = within, between, permutations

    def members_values(self) -> list[float]:
        """Return the Shapley value of every member of the cohort.

        Raises:
            ConfigurationError: the method is exact, and the cohort is too large.
        """
        size = len(self.cohort.members)
        if self.method == "exact":
            if size > MOST_EXACT:
                raise ConfigurationError(
                    f"Expected a cohort of at most {MOST_EXACT} clients for exact Shapley values but got {size}: use "
                    "monte_carlo or gtg"
                )
            return [float(value) for value in exact(self.worth, size)]
        guided, random = self.method == "gtg", generator(self.seed, "shapley", self.round)
        values = truncated(
            self.worth,
            size,
            random,
            within=self.within,
            between=self.between if guided else 0.0,
            permutations=self.permutations,
            guided=guided,
        )
        return [float(value) for value in values]
