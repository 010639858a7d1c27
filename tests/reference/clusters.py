"""The reference's IFCA: who is in which cluster, and when models are drawn anew."""

from __future__ import annotations

import math

from tests.reference.rules import Rules

PATIENCE, CHOICES = 3, 12
"""Rounds in a row in which all chose one model, and choices in them, after which the others are drawn anew."""


class Clusters:
    """Every client's cluster, -1 for none yet.

    Attributes:
        history: (round, client, cluster) of every change.
        met: clients that have chosen in a round.
    """

    def __init__(self, rules: Rules, clients: int) -> None:
        self.rules = rules
        self.assigned = [-1 if rules.clusters > 1 else 0] * clients
        self.history: list[tuple[int, int, int]] = []
        self.met: set[int] = set()
        self.winners: list[int] = []
        self.choices = self.restarts = 0

    def of(self, client: int) -> int:
        assert self.assigned[client] >= 0
        return self.assigned[client]

    def choose(self, t: int, clients: list[int], losses: dict[int, list[float]], met: bool = True) -> None:
        """Put clients where their loss is least, the first of equals."""
        for client in clients:
            assert all(math.isfinite(loss) for loss in losses[client])
            best = min(range(self.rules.clusters), key=lambda cluster: (losses[client][cluster], cluster))
            if self.assigned[client] != best:
                self.assigned[client] = best
                self.history.append((t, client, best))
        if met:
            self.met.update(clients)

    def counts(self, clients: list[int] | range) -> list[int]:
        return [sum(self.assigned[k] == cluster for k in clients) for cluster in range(self.rules.clusters)]

    def renewed(self, cohort: list[int]) -> list[int]:
        """Return which clusters get another model: those that nobody has chosen for long, while one took all."""
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
        """Return the columns of a round, before clients outside its cohort are asked."""
        sizes = self.counts(range(len(self.assigned)))
        columns = {f"cluster_size:{cluster}": float(size) for cluster, size in enumerate(sizes)}
        empty = self.counts(cohort).count(0)
        return {"cluster_count": float(self.rules.clusters), "cluster_empty": float(empty), **columns}
