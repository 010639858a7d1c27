"""The base class of clusterings, which choose the clients that share a model, and when new models are added."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from hetfl.piece import Facts, Piece, settings_of

UNKNOWN = -1
"""Stands for the cluster of a client that has no cluster yet."""


class ClusterProbe(Protocol):
    """The questions that a clustering may ask clients in a round that begins; the round is charged for the answers."""

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        """Return per client the mean loss of every cluster's model, at the client's level, on its own training data.

        The loss is NaN if the client gave no answer for a model.

        Args:
            clients: ids, each once.
        """
        ...


@dataclass(frozen=True)
class NewModel:
    """A new model for a cluster at the end of a round.

    Attributes:
        cluster: number of the cluster; a number equal to the present number of clusters adds a cluster.
        source: the cluster whose model is copied, with the state of the server's optimizer; it may be ``cluster``
            itself; None: a new random model.
        jitter: standard deviation of the normal noise on a copy's parameters, per tensor, relative to the tensor's root
            mean square.
    """

    cluster: int
    source: int | None
    jitter: float = 0.0


class Clustering(Piece):
    """Assigns one of several global models to every client of a cohort, and stores the assignment.

    A client keeps its residual of error feedback when it changes its cluster: it sends the residual's entries to its
    present cluster.

    A cluster's number is that of its model. The module knows the number of models.

    Args:
        count: number of global models that a run begins with.

    Attributes:
        assigned: by client, the cluster that it chose last, also for an evaluation; -1 while it has none.
        trained: the same without choices for evaluations, which change no training.
        initial_models: number of global models that a run begins with.
        history: (round, client, cluster), one entry for each change of a client's cluster.
    """

    for_evaluation: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    """Whether a run may get more models than it began with."""
    asks: ClassVar[bool] = False
    """Whether the clients of a cohort download all models, and pass their data through each, before they train."""
    apart: ClassVar[bool] = False
    """Whether a client has a separate state (residual, personal tensors) for each model."""
    takes_over: ClassVar[bool] = False
    """Whether a run may resume from a checkpoint of any other clustering, with the checkpoint's models."""
    shared: Sequence[str] = ()
    """Patterns of names of tensors that all clusters share; ``*`` matches anything."""

    def __init__(self, count: int) -> None:
        self.initial_models = count
        self.assigned: list[int] = []
        self.trained: list[int] = []
        self.history: list[tuple[int, int, int]] = []
        self._training = False
        self._largest: int | None = None  # until a client's cluster in training changes

    def setup(self, facts: Facts) -> None:
        """Set the number of clients; if it has changed, no client has a cluster yet."""
        self._training = facts.rounds is not None
        if len(self.assigned) != facts.num_clients:
            self.assigned, self.history, self._largest = [UNKNOWN] * facts.num_clients, [], None
            self.trained = list(self.assigned)

    @abstractmethod
    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:
        """Put the clients of a cohort into clusters, by :meth:`put`.

        Args:
            round: the round that begins.
            cohort: ids of the clients that take part.
            probe: asks them for losses.
        """

    def put(self, round: int, client: int, cluster: int, training: bool = True) -> None:
        """Set a client's cluster; with ``training`` false for evaluations alone."""
        if training and self.trained[client] != cluster:
            self.trained[client], self._largest = cluster, None
        if self.assigned[client] != cluster:
            self.assigned[client] = cluster
            self.history.append((round, client, cluster))

    def cluster_of(self, client: int) -> int:
        """Return a client's cluster in training; for a client without one, the largest cluster."""
        cluster = self.trained[client]
        return self.largest if cluster == UNKNOWN else cluster

    def evaluating(self) -> list[int]:
        """Return by client the cluster whose model evaluates it: the one that it chose last, or else the largest."""
        largest = _largest(self.assigned)
        return [largest if cluster == UNKNOWN else cluster for cluster in self.assigned]

    def models_of(self, client: int, round: int) -> list[int]:
        """Return the models that a client of a cohort trains in a round, one task each; by default its cluster's."""
        return [self.cluster_of(client)]

    def owner(self, client: int, model: int) -> int:
        """Return the key of a client's state for a model in stores: the client's id, unless :attr:`apart` is true."""
        return client + self.apart * model * len(self.assigned)

    @property
    def largest(self) -> int:
        """The cluster with the most known members in training; of several, the one with the smallest number."""
        if self._largest is None:
            self._largest = _largest(self.trained)
        return self._largest

    def several(self, models: int) -> bool:
        """Return whether there are several models, or may be later.

        Args:
            models: the present number of models.
        """
        return models > 1 or self.grows

    def settle(self, round: int, clients: Sequence[int], probe: ClusterProbe) -> None:
        """Assign clusters to clients without one before an evaluation of the present models. By default does nothing.

        Training must not depend on evaluations: such choices are put with ``training`` false.

        Args:
            round: the last round of the models.
            clients: ids of the reachable clients.
            probe: asks them for losses.
        """

    def new_models(self, round: int, count: int) -> list[NewModel]:
        """Return the new models of clusters at the end of a round. By default there are none.

        Args:
            round: the round.
            count: number of models.
        """
        return []

    def settings(self) -> dict[str, object]:
        """Return the settings without the number of clusters: a checkpoint has its models."""
        return settings_of(self, less={"clusters"})

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return further tables beside ``clusters.csv``: by name, columns and rows. By default there are none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return every client's cluster and the policy's state, as plain types and tensors."""
        return {**self.evaluation_state(), "learnt": self.learnt()}

    def evaluation_state(self) -> dict[str, Any]:
        """Return every client's cluster, without state that only training needs."""
        return {
            "policy": type(self).__name__,
            "assigned": torch.tensor(self.assigned, dtype=torch.int64),
            "trained": torch.tensor(self.trained, dtype=torch.int64),
            "history": torch.tensor(self.history, dtype=torch.int64).reshape(-1, 3),
            "learnt": {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load every client's cluster, from any policy; for training with the same policy, also its state.

        Clients of other data than the checkpoint's keep the clusters that they have.
        """
        if self.assigned and len(state["assigned"]) != len(self.assigned):
            return
        self.assigned, self._largest = state["assigned"].tolist(), None
        self.trained = state.get("trained", state["assigned"]).tolist()  # absent before evaluations were kept apart
        self.history = [(round, client, cluster) for round, client, cluster in state["history"].tolist()]
        if self._training and state["policy"] == type(self).__name__:
            self.load_learnt(state["learnt"])

    def learnt(self) -> dict[str, Any]:
        """Return the policy's state beside the clusters. By default it is empty."""
        return {}

    def load_learnt(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`learnt` returned. By default does nothing."""


class OneCluster(Clustering):
    """One global model for all clients; or the models of a checkpoint, each trained by its own clients.

    With the models of a checkpoint no client changes its cluster, and the models go on sharing the same tensors. A
    client without a cluster joins the largest one.
    """

    takes_over: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(1)
        self._several = False

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        pass

    def cluster_of(self, client: int) -> int:  # noqa: D102
        return super().cluster_of(client) if self._several else 0

    def evaluating(self) -> list[int]:  # noqa: D102
        return super().evaluating() if self._several else [0] * len(self.assigned)

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._several = any(cluster > 0 for cluster in self.assigned)
        if self._several:
            self.assigned = self.evaluating()
            self.trained, self._largest = list(self.assigned), None


def _largest(clusters: Sequence[int]) -> int:
    sizes = Counter(cluster for cluster in clusters if cluster != UNKNOWN)
    return min(sizes, key=lambda cluster: (-sizes[cluster], cluster), default=0)
