"""The reference's IFCA: the clusters of the clients, and the rule that redraws models."""

from __future__ import annotations

import math

from tests.reference.rules import Rules

PATIENCE, CHOICES = 3, 12
"""Models are redrawn after this number of rounds in a row, and this number of choices, with one chosen model."""


class Clusters:
    """Every client's cluster; -1 before its first choice.

    Attributes:
        history: every change as (round, client, cluster).
        met: clients that have chosen in a round.
    """

    def __init__(self, rules: Rules, clients: int) -> None:
        self.rules = rules
        self.assigned = [-1 if rules.clusters > 1 else 0] * clients
        self.trained = list(self.assigned)  # without choices for evaluations
        self.history: list[tuple[int, int, int]] = []
        self.met: set[int] = set()
        self.winners: list[int] = []
        self.choices = self.restarts = 0

    def of(self, client: int) -> int:
        assert self.assigned[client] >= 0
        return self.assigned[client]

    def choose(self, t: int, clients: list[int], losses: dict[int, list[float]], met: bool = True) -> None:
        """Assign clients to the cluster with the least loss; the first one of equal losses."""
        for client in clients:
            assert all(math.isfinite(loss) for loss in losses[client])
            best = min(range(self.rules.clusters), key=lambda cluster: (losses[client][cluster], cluster))
            if self.assigned[client] != best:
                self.assigned[client] = best
                self.history.append((t, client, best))
            if met:
                self.trained[client] = best
        if met:
            self.met.update(clients)

    def counts(self, clients: list[int] | range) -> list[int]:
        return [sum(self.assigned[k] == cluster for k in clients) for cluster in range(self.rules.clusters)]

    def renewed(self, cohort: list[int]) -> list[int]:
        """Return the clusters whose models are redrawn: those that no client has chosen while one took all choices."""
        chosen = {self.assigned[client] for client in cohort}
        if len(chosen) > 1 or (self.winners and chosen != {self.winners[-1]}):
            self.winners, self.choices = [], 0
        if len(chosen) == 1:
            self.winners, self.choices = [*self.winners, *chosen], self.choices + len(cohort)
        if len(self.winners) < PATIENCE or self.choices < CHOICES or self.restarts == self.rules.restarts:
            return []
        winner = self.winners[-1]
        self.winners, self.choices, self.restarts = [], 0, self.restarts + 1
        return [cluster for cluster in range(self.rules.clusters) if cluster != winner]

    def columns(self, cohort: list[int]) -> dict[str, float]:
        """Return the logged columns of a round, before clients outside its cohort choose."""
        sizes = self.counts(range(len(self.assigned)))
        columns = {f"cluster_size:{cluster}": float(size) for cluster, size in enumerate(sizes)}
        empty = self.counts(cohort).count(0)
        return {"cluster_count": float(self.rules.clusters), "cluster_empty": float(empty), **columns}
