"""What a clustering is: which clients share a model, and when there are more models."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from hetfl.piece import Facts, Piece, settings_of

UNKNOWN = -1
"""The cluster of a client that has none yet."""


class ClusterProbe(Protocol):
    """What a clustering may ask of the round that begins; what an answer costs is charged to the round."""

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        """Return per client the mean loss of every cluster's model, at the client's level, on its own training data.

        Of a model that a client gave no answer on it is NaN.

        Args:
            clients: ids, each once.
        """
        ...


@dataclass(frozen=True)
class NewModel:
    """A cluster gets a model at the end of a round.

    Attributes:
        cluster: its number; at most the number of clusters, and then there is one more.
        source: the cluster whose model, with the state of the server's optimizer, is copied, its own included; None: a
            new draw.
        jitter: standard deviation of the normal noise on a copy's parameters, per tensor, relative to the tensor's root
            mean square.
    """

    cluster: int
    source: int | None
    jitter: float = 0.0


class Clustering(Piece):
    """Gives every client of a cohort one of several global models, and keeps who has which.

    Residuals of error feedback belong to a client, whatever its cluster: what it has not sent yet it sends to the
    cluster that it is in then.

    A cluster's number is that of its model; how many models there are is known by the module.

    Args:
        count: number of global models that a run begins with.

    Attributes:
        assigned: by client, its cluster; -1 while it has none.
        initial_models: number of global models that a run begins with.
        history: (round, client, cluster), one entry for every time that a client's cluster changed.
    """

    for_evaluation: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    """Whether a run may come to have more models than it began with."""
    asks: ClassVar[bool] = False
    """Whether the clients of a cohort are sent all models, and pass their data through each, before they train."""
    apart: ClassVar[bool] = False
    """Whether what clients keep between rounds, residuals and personal tensors, is kept for each model apart."""
    takes_over: ClassVar[bool] = False
    """Whether a run goes on from a checkpoint of any other clustering, with the models that it holds."""
    shared: Sequence[str] = ()
    """Patterns of tensors that are one for all clusters; ``*`` stands for anything."""

    def __init__(self, count: int) -> None:
        self.initial_models = count
        self.assigned: list[int] = []
        self.history: list[tuple[int, int, int]] = []
        self._training = False

    def setup(self, facts: Facts) -> None:
        """Learn the number of clients; another fleet than before has no clusters yet."""
        self._training = facts.rounds is not None
        if len(self.assigned) != facts.num_clients:
            self.assigned, self.history = [UNKNOWN] * facts.num_clients, []

    @abstractmethod
    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:
        """Put the clients of a cohort into clusters, by :meth:`put`.

        Args:
            round: the round that begins.
            cohort: ids of the clients that take part.
            probe: what may be asked of them.
        """

    def put(self, round: int, client: int, cluster: int) -> None:
        """Note a client's cluster."""
        if self.assigned[client] != cluster:
            self.assigned[client] = cluster
            self.history.append((round, client, cluster))

    def cluster_of(self, client: int) -> int:
        """Return a client's cluster; for one that has none yet, the one that most clients are in, the first of them."""
        own = self.assigned[client]
        return self.largest if own == UNKNOWN else own

    def models_of(self, client: int, round: int) -> list[int]:
        """Return the models that a client of a cohort trains in a round, a task for each: by default its cluster's."""
        return [self.cluster_of(client)]

    def owner(self, client: int, model: int) -> int:
        """Return the number under which a client's state for a model is kept: its id, unless states are kept apart."""
        return client + self.apart * model * len(self.assigned)

    @property
    def largest(self) -> int:
        """The cluster that most clients are known to be in, the first of equals."""
        found = Counter(cluster for cluster in self.assigned if cluster != UNKNOWN)
        return min(found, key=lambda cluster: (-found[cluster], cluster), default=0)

    def several(self, models: int) -> bool:
        """Return whether there are, or may come to be, several models.

        Args:
            models: how many there are.
        """
        return models > 1 or self.grows

    def settle(self, round: int, clients: Sequence[int], probe: ClusterProbe) -> None:
        """Put clients that have no cluster yet into one, before the present models are evaluated. By default nothing.

        Args:
            round: the round that the models came out of.
            clients: ids of those within reach.
            probe: what may be asked of them.
        """

    def new_models(self, round: int, count: int) -> list[NewModel]:
        """Return which clusters get a model once a round has been closed. By default none.

        Args:
            round: the round.
            count: number of models.
        """
        return []

    def settings(self) -> dict[str, object]:
        """Return the settings but for the number of clusters: the models come with a checkpoint."""
        return settings_of(self, less={"clusters"})

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return what is to be read beside ``clusters.csv``: by name of a table its columns and rows. Default: none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return who is in which cluster, and what was learnt, as plain types and tensors."""
        return {**self.evaluation_state(), "learnt": self.learnt()}

    def evaluation_state(self) -> dict[str, Any]:
        """Return who is in which cluster, with nothing learnt that only training needs."""
        return {
            "policy": type(self).__name__,
            "assigned": torch.tensor(self.assigned, dtype=torch.int64),
            "history": torch.tensor(self.history, dtype=torch.int64).reshape(-1, 3),
            "learnt": {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back who is in which cluster, whatever policy put them there; to train on, also what was learnt."""
        self.assigned = state["assigned"].tolist()
        self.history = [(round, client, cluster) for round, client, cluster in state["history"].tolist()]
        if self._training and state["policy"] == type(self).__name__:
            self.load_learnt(state["learnt"])

    def learnt(self) -> dict[str, Any]:
        """Return what was learnt beside the clusters. By default nothing."""
        return {}

    def load_learnt(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`learnt` gave. By default nothing."""


class OneCluster(Clustering):
    """One global model for all clients; or as many as a checkpoint brings, each trained on by the clients it has.

    Nobody is assigned anew then, and what the models shared they go on to share. A client that had no cluster yet gets
    the one that most are in.
    """

    takes_over: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(1)
        self._several = False

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        pass

    def cluster_of(self, client: int) -> int:  # noqa: D102
        return super().cluster_of(client) if self._several else 0

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._several = any(cluster > 0 for cluster in self.assigned)
        if self._several:
            largest = self.largest
            self.assigned = [largest if cluster == UNKNOWN else cluster for cluster in self.assigned]
