"""What a clustering is: which clients share a model, and when there are more models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from hetfl.types import Index, Report
from hetfl.updates import Update

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


class Clustering(ABC):
    """Gives every client of a cohort one of several global models, and keeps who has which.

    Residuals of error feedback belong to a client, whatever its cluster: what it has not sent yet it sends to the
    cluster that it is in then.

    Attributes:
        count: number k of global models.
        assigned: by client, its cluster; -1 while it has none.
        history: (round, client, cluster), one entry for every time that a client's cluster changed.
    """

    grows: ClassVar[bool] = False
    """Whether a run may come to have more models than it began with."""
    asks: ClassVar[bool] = False
    """Whether the clients of a cohort are sent all models, and pass their data through each, before they train."""
    takes_over: ClassVar[bool] = False
    """Whether a run goes on from a checkpoint of any other clustering, with the models that it holds."""
    shared: Sequence[str] = ()
    """Patterns of tensors that are one for all clusters; ``*`` stands for anything."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.assigned: list[int] = []
        self.history: list[tuple[int, int, int]] = []

    def setup(self, num_clients: int, seed: int) -> None:
        """Learn the number of clients and the seed; another fleet than before has no clusters yet."""
        self.seed = seed
        if len(self.assigned) != num_clients:
            self.assigned, self.history = [UNKNOWN] * num_clients, []

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

    @property
    def several(self) -> bool:
        """Whether there are, or may be, several models."""
        return True

    @property
    def largest(self) -> int:
        """The cluster that most clients are known to be in, the first of equals."""
        found = Counter(cluster for cluster in self.assigned if cluster != UNKNOWN)
        return min(found, key=lambda cluster: (-found[cluster], cluster), default=0)

    @property
    def sizes(self) -> list[int]:
        """Number of clients known to be in each cluster."""
        found = Counter(self.assigned)
        return [found[cluster] for cluster in range(self.count)]

    def settle(self, round: int, clients: Sequence[int], probe: ClusterProbe) -> None:
        """Put clients that have no cluster yet into one, before the present models are evaluated. By default nothing.

        Args:
            round: the round that the models came out of.
            clients: ids of those within reach.
            probe: what may be asked of them.
        """

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Learn from an update that the server accepted, in cohort order; by default nothing.

        Args:
            update: what the server decoded.
            index: the entries that it covers.
            report: what the client said beside it, its cluster included.
        """

    def end_round(self, round: int) -> list[NewModel]:
        """Close the round after the server's step; return which clusters get a model. By default none."""
        return []

    def columns(self) -> dict[str, float]:
        """Return the clustering's columns of ``metrics.csv``."""
        sizes = {f"cluster/size/{cluster}": float(size) for cluster, size in enumerate(self.sizes)}
        return {"cluster/count": float(self.count), **sizes}

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return what is to be read beside ``clusters.csv``: by name of a table its columns and rows. Default: none."""
        return {}

    def bind(self, folder: str | None) -> None:
        """Learn the folder of this run, where files may be kept; None if it has none. By default nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return who is in which cluster, and what was learnt, as plain types and tensors."""
        return {**self.assignments(), "own": self.own_state()}

    def assignments(self) -> dict[str, Any]:
        """Return who is in which cluster, as plain types and tensors, with nothing learnt that only training needs."""
        return {
            "count": self.count,
            "assigned": torch.tensor(self.assigned, dtype=torch.int64),
            "history": torch.tensor(self.history, dtype=torch.int64).reshape(-1, 3),
            "shared": list(self.shared),
            "own": {},
        }

    def load_assignments(self, state: Mapping[str, Any]) -> None:
        """Take back who is in which cluster: all that an evaluation needs, whatever found it."""
        self.count, self.assigned = state["count"], state["assigned"].tolist()
        self.history = [(round, client, cluster) for round, client, cluster in state["history"].tolist()]

    def own_state(self) -> dict[str, Any]:
        """Return what was learnt beside the clusters. By default nothing."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`own_state` gave. By default nothing."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk. By default nothing."""


class OneCluster(Clustering):
    """One global model for all clients; or as many as a checkpoint brings, each trained on by the clients it has.

    Nobody is assigned anew then, and what the models shared they go on to share. A client that had no cluster yet gets
    the one that most are in.
    """

    takes_over: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(1)

    @property
    def several(self) -> bool:
        """Whether a checkpoint brought several models."""
        return self.count > 1

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        pass

    def cluster_of(self, client: int) -> int:  # noqa: D102
        return super().cluster_of(client) if self.several else 0

    def load_assignments(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_assignments(state)
        self.shared = tuple(state["shared"])
        if self.several:
            largest = self.largest
            self.assigned = [largest if own == UNKNOWN else own for own in self.assigned]
