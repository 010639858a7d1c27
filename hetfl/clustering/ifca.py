"""IFCA: every client chooses the model with the least loss on its data.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020 (arXiv
2006.04088).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from hetfl.clustering.base import UNKNOWN, Clustering, ClusterProbe, NewModel
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts

PATIENCE = 3
"""Number of successive rounds with all choices in one cluster after which the clustering counts as collapsed."""
CHOICES = 12
"""Least number of choices in these rounds: a few clients may have similar data by chance."""

COUNTERS = ("alone", "choices", "winner", "restarted", "warned")
"""Attributes that are kept over rounds and saved in checkpoints."""


class IFCA(Clustering):
    r"""Iterative federated clustering, by model averaging (algorithm 1, option II).

    .. math:: c_k = \arg\min_j F_k(\theta_j), \qquad
              \theta_j \leftarrow \theta_j + \operatorname{mean}_{k \in S_t: c_k = j} \Delta_k

    The k models have different random initial values. In every round the clients of the cohort download all models,
    choose the one with the least loss on all of their training data (ties: the first), and train it; the server
    averages within clusters. A model that no client chose does not change, nor does the state of the server's optimizer
    for it, bit for bit. The cost of a choice is charged: k models down (shared tensors once), k forward passes, and one
    number up.

    A client keeps the cluster that it chose last, also if it does not answer, or if no model has a finite loss. A
    client that has never taken part chooses its cluster before every evaluation for which it is reachable, at the same
    cost, so that each client is evaluated by a model that it chose. With ``ask_all`` all reachable clients choose anew
    before an evaluation, as in the paper (there by their test data, here by their training data). What clients choose
    for an evaluation does not change training.

    All clients may choose the same model: a model that is ahead early is better for every client, and only chosen
    models are trained. If all clients of 3 successive rounds, at least 12 in total, chose the same model, a warning is
    given once. ``restarts`` then replaces models, at most so many times. All models become copies of the chosen one,
    each with different noise: they are then equally good, and similar clients tend to choose the same one. With
    ``jitter`` null the models that no client chose are drawn anew instead; they can only win while the chosen model has
    learnt little.

    The numbers of the clusters have no meaning.

    Args:
        clusters: number k of models.
        shared: patterns of names of tensors that all clusters share, ``*`` for anything, such as ``blocks.*``: they are
            averaged over all clients (section 3.1, weight sharing).
        restarts: largest number of times that models which no client chooses are replaced.
        jitter: standard deviation of the noise on parameters, per tensor, relative to its root mean square; null: new
            random models.
        ask_all: ask all reachable clients before an evaluation, not only those that have never taken part.

    Raises:
        ConfigurationError: fewer than two clusters, a negative number of restarts, or a jitter that is not positive.
    """

    asks: ClassVar[bool] = True

    def __init__(
        self,
        clusters: int = 2,
        shared: Sequence[str] = (),
        restarts: int = 0,
        jitter: float | None = 0.1,
        ask_all: bool = False,
    ) -> None:
        if clusters < 2:
            raise ConfigurationError(f"Expected clusters of at least 2 for IFCA but got {clusters}")
        if restarts < 0:
            raise ConfigurationError(f"Expected restarts of at least 0 for IFCA but got {restarts}")
        if jitter is not None and not 0 < jitter < math.inf:
            raise ConfigurationError(f"Expected jitter above 0 or null for IFCA but got {jitter}")
        super().__init__(clusters)
        self.clusters, self.shared, self.restarts = clusters, tuple(shared), restarts
        self.jitter, self.ask_all = jitter, ask_all
        self._forget()

    def _forget(self) -> None:
        self.met: set[int] = set()
        self.alone, self.choices = 0, 0  # successive rounds in which all clients chose one cluster, and their choices
        self.winner = 0  # this cluster
        self.restarted, self.warned, self._empty = 0, False, 0
        self._chosen: Counter[int] = Counter()  # by cluster, the number of clients of the present cohort that chose it

    def setup(self, facts: Facts) -> None:
        """Set the number of clients.

        Raises:
            ConfigurationError: there are more models than clients.
        """
        if self.clusters > facts.num_clients:
            raise ConfigurationError(
                f"Expected clusters of at most the number of clients, {facts.num_clients}, for IFCA but got "
                f"{self.clusters}"
            )
        if len(self.assigned) != facts.num_clients:
            self._forget()
        super().setup(facts)

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        answered = self._choose(round, cohort, probe)
        self.met.update(answered)
        self._chosen = Counter(self.assigned[client] for client in answered)

    def settle(self, round: int, clients: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        asked = [client for client in clients if self.ask_all or client not in self.met]
        if asked:
            self._choose(round, asked, probe, training=False)

    def _choose(self, round: int, clients: Sequence[int], probe: ClusterProbe, training: bool = True) -> list[int]:
        """Assign each client to the cluster with the least loss; return the clients with a finite loss."""
        answered = []
        for client, losses in zip(clients, probe.cluster_losses(clients), strict=True):
            known = [math.inf if math.isnan(loss) else loss for loss in losses]
            if min(known) < math.inf:
                self.put(round, client, known.index(min(known)), training)
                answered.append(client)
        return answered

    def new_models(self, round: int, count: int) -> list[NewModel]:  # noqa: D102
        self._empty = sum(not self._chosen[cluster] for cluster in range(count))
        if not any(self._chosen.values()):  # no client answered, so this is no sign of a collapse
            return []
        winner = max(range(count), key=self._chosen.__getitem__)
        empty = [cluster for cluster in range(count) if cluster != winner]
        same = not any(self._chosen[cluster] for cluster in empty)
        if not same or winner != self.winner:
            self.alone, self.choices, self.winner = 0, 0, winner
        if same:
            self.alone, self.choices = self.alone + 1, self.choices + sum(self._chosen.values())
        if self.alone < PATIENCE or self.choices < CHOICES:
            return []
        if not self.warned:
            self.warned = True
            advice = "" if self.restarts else "; set clustering.restarts, or another seed"
            rank_zero_warn(
                f"IFCA: all clients have chosen cluster {winner} of {count} for {self.alone} rounds up to round "
                f"{round}: the other models are not trained{advice}"
            )
        if self.restarted == self.restarts:
            return []
        self.restarted, self.alone, self.choices = self.restarted + 1, 0, 0
        if self.jitter is None:
            return [NewModel(cluster, None) for cluster in empty]
        return [NewModel(cluster, winner, self.jitter) for cluster in (*empty, winner)]

    def columns(self) -> dict[str, float]:
        """Return the number of clusters that no client of the cohort chose."""
        return {"cluster/empty": float(self._empty)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load every client's cluster, and the clients that chose theirs, which are not asked again."""
        super().load_state_dict(state)
        placed = [client for client, cluster in enumerate(self.assigned) if cluster != UNKNOWN]  # by any policy
        self.met = set(state["learnt"].get("met", placed))

    def evaluation_state(self) -> dict[str, Any]:  # noqa: D102
        return {**super().evaluation_state(), "learnt": {"met": sorted(self.met)}}

    def learnt(self) -> dict[str, Any]:  # noqa: D102
        return {"met": sorted(self.met), **{name: getattr(self, name) for name in COUNTERS}}

    def load_learnt(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for name in COUNTERS:
            setattr(self, name, state[name])
