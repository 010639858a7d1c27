"""IFCA: every client takes the model that serves it best.

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
"""Rounds in a row with all clients in one cluster after which it counts as collapsed, ..."""
CHOICES = 12
"""... if so many choices were made in them: few clients may well be of one kind."""

COUNTERS = ("alone", "choices", "winner", "restarted", "warned")
"""What is counted over rounds."""


class IFCA(Clustering):
    r"""Iterative federated clustering, by model averaging (algorithm 1, option II).

    .. math:: c_k = \arg\min_j F_k(\theta_j), \qquad
              \theta_j \leftarrow \theta_j + \operatorname{mean}_{k \in S_t: c_k = j} \Delta_k

    The k models begin as different draws. In every round the clients of the cohort are sent all of them, choose the one
    of least loss on all of their training data (ties: the first), and train it; the server averages within clusters. A
    model that nobody chose keeps its values, and the server's optimizer its state of it, bit for bit. What choosing
    costs is charged: k models down (what they share once), k forward passes, one number up.

    A client keeps the cluster that it last chose, also when it does not answer or no model of all has a finite loss.
    Those that never took part are asked, at the same price, before every evaluation for which they are within reach, so
    that each client is evaluated by a model that was chosen for it; with ``ask_all`` everyone within reach is, as in
    the paper, where all choose anew before they are tested (there by their test data, here by their training data).

    One model can win everybody: a head start makes it the better one for clients of every kind, and only what is chosen
    is trained. When all clients of 3 rounds in a row, and at least 12, chose the same one, a warning says so, once.
    ``restarts`` then replaces models, so many times at most: all of them by the chosen one, each with noise of its own,
    so that they start level and clients of one kind tend to the same one; or, with ``jitter`` null, those that nobody
    chose by new draws as at the beginning, which can win only while the chosen one has learnt little.

    Which number a cluster has means nothing.

    Args:
        clusters: number k of models.
        shared: patterns of names of tensors that are one for all clusters, ``*`` for anything, such as ``blocks.*``:
            they are averaged over all clients (section 3.1, weight sharing).
        restarts: how often models are replaced because nobody chooses them.
        jitter: standard deviation of the noise on parameters, per tensor, relative to its root mean square; null: new
            draws.
        ask_all: ask all clients within reach before an evaluation, not only those that never took part.

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
        self.alone, self.choices = 0, 0  # rounds in a row in which all chose one cluster, and how many chose
        self.winner = 0  # which
        self.restarted, self.warned, self._empty = 0, False, 0
        self._chosen: Counter[int] = Counter()  # how many of the present cohort chose each

    def setup(self, facts: Facts) -> None:
        """Learn the number of clients.

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
            self._choose(round, asked, probe)

    def _choose(self, round: int, clients: Sequence[int], probe: ClusterProbe) -> list[int]:
        """Put clients into the cluster that serves them best; return those that had a loss to choose by."""
        answered = []
        for client, losses in zip(clients, probe.cluster_losses(clients), strict=True):
            known = [math.inf if math.isnan(loss) else loss for loss in losses]
            if min(known) < math.inf:
                self.put(round, client, known.index(min(known)))
                answered.append(client)
        return answered

    def new_models(self, round: int, count: int) -> list[NewModel]:  # noqa: D102
        self._empty = sum(not self._chosen[cluster] for cluster in range(count))
        if not any(self._chosen.values()):  # nobody answered: that tells nothing
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
                f"{round}: the others learn nothing{advice}"
            )
        if self.restarted == self.restarts:
            return []
        self.restarted, self.alone, self.choices = self.restarted + 1, 0, 0
        if self.jitter is None:
            return [NewModel(cluster, None) for cluster in empty]
        return [NewModel(cluster, winner, self.jitter) for cluster in (*empty, winner)]

    def columns(self) -> dict[str, float]:
        """Return in how many clusters nobody of the cohort was."""
        return {"cluster/empty": float(self._empty)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back who is in which cluster, and who chose it: in an evaluation too they are not asked again."""
        super().load_state_dict(state)
        placed = [client for client, cluster in enumerate(self.assigned) if cluster != UNKNOWN]  # by whatever policy
        self.met = set(state["learnt"].get("met", placed))

    def evaluation_state(self) -> dict[str, Any]:  # noqa: D102
        return {**super().evaluation_state(), "learnt": {"met": sorted(self.met)}}

    def learnt(self) -> dict[str, Any]:  # noqa: D102
        return {"met": sorted(self.met), **{name: getattr(self, name) for name in COUNTERS}}

    def load_learnt(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for name in COUNTERS:
            setattr(self, name, state[name])
