"""Clustered federated learning: a cluster is split in two once its clients' updates have different directions.

Sattler, Müller, Samek: Clustered Federated Learning: Model-Agnostic Distributed Multi-Task Optimization under Privacy
Constraints, IEEE TNNLS 2020 (arXiv 1910.01991).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

from hetfl.clustering.base import Clustering, ClusterProbe, NewModel
from hetfl.clustering.bipartition import Linkage, bipartition, norms, similarities
from hetfl.entries import blocks_of
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import Report
from hetfl.updates import Update

TREE = ("round", "parent", "child", "stay", "leave", "similarity")
"""Columns of ``cluster_tree.csv``."""


class ClusteredFL(Clustering):
    r"""Recursive bipartition by the cosine similarities of updates (algorithms 1 and 3).

    All clients begin with one model. At the end of a round a cluster c is split if its mean update is small while the
    update of a single client is still large,

    .. math:: \Bigl\lVert \operatorname{mean}_{k \in c} u_k \Bigr\rVert < \epsilon_1 \quad \text{and} \quad
              \max_{k \in c} \lVert u_k \rVert > \epsilon_2,

    into the two groups that minimise the largest cosine similarity between them. Each part may be split again later.
    This is the paper's criterion, which single linkage attains. The authors' code uses complete linkage instead, which
    attains it in fewer than half of random similarity matrices; ``linkage: complete`` repeats their runs. If the two
    groups are separated (any two clients of one group are more similar than any two of different groups), both
    linkages find them.

    :math:`u_k` is the client's latest decoded update since the cluster exists, for trained parameters. With sub-models,
    the mean of each entry is over the clients that cover it, and two clients are compared on the entries that both
    cover.

    With partial participation an absent member counts with its latest update. A cluster is not split before all its
    members have sent an update to it. Both parts begin, after the server's step, with the cluster's model and the
    state of the server's optimizer; the first part keeps the number. (The paper's code splits before the step, for
    which all updates of a round would have to be kept. When a cluster is split, the step is small.)

    ε₁ and ε₂ are in the units of an update, and depend on the net, the learning rate and the epochs. To choose them, a
    run logs both norms: ``cluster/mean_norm/<cluster>`` and ``cluster/max_norm/<cluster>``. The defaults are those of
    the paper's code. The updates of all N clients are kept.

    Args:
        eps1: ε₁; a cluster is split only if the norm of its mean update is below.
        eps2: ε₂; a cluster is split only if the norm of an update is above.
        min_rounds: rounds before the first split.
        min_size: smallest number of clients of a cluster that may be split, at least 3.
        updates: the store of updates; None: in memory.
        linkage: how a cluster is divided; ``single``: by the paper's criterion; ``complete``: as in the authors' code.

    Raises:
        ConfigurationError: a number is out of range, or the linkage is neither of both.

    Attributes:
        tree: the splits: round, parent and child (numbers of clusters; the other part keeps the parent's), the clients
            of both parts, and the largest similarity between them.
    """

    grows: ClassVar[bool] = True

    def __init__(
        self,
        eps1: float = 0.4,
        eps2: float = 1.6,
        min_rounds: int = 20,
        min_size: int = 3,
        updates: ClientStore | None = None,
        linkage: Linkage = "single",
    ) -> None:
        for name, value in (("eps1", eps1), ("eps2", eps2)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"Expected {name} above 0 for ClusteredFL but got {value}")
        if min_rounds < 0:
            raise ConfigurationError(f"Expected min_rounds of at least 0 for ClusteredFL but got {min_rounds}")
        if min_size < 3:
            raise ConfigurationError(f"Expected min_size of at least 3 clients for ClusteredFL but got {min_size}")
        if linkage not in get_args(Linkage):
            raise ConfigurationError(f"Expected linkage single or complete for ClusteredFL but got {linkage}")
        super().__init__(1)
        self.eps1, self.eps2, self.min_rounds, self.min_size = eps1, eps2, min_rounds, min_size
        self.linkage = linkage
        self.updates = MemoryStore() if updates is None else updates
        self.tree: list[dict[str, Any]] = []
        self._norms: dict[int, tuple[float, float]] = {}
        self._round = 0

    def setup(self, facts: Facts) -> None:  # noqa: D102
        if len(self.assigned) != facts.num_clients:
            self._forget(self.updates.clients())
            self.tree = []
        super().setup(facts)
        for client in range(facts.num_clients if not self.history else 0):
            self.put(0, client, 0)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.updates.bind(folder)

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:  # noqa: D102
        self._round = round

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self.updates.save(report.client, blocks_of(update.to_dense(), index), self._round)

    def new_models(self, round: int, count: int) -> list[NewModel]:  # noqa: D102
        clients_with_update, self._norms = set(self.updates.clients()), {}
        models: list[NewModel] = []
        for cluster in range(count):  # clusters of this round's splits have no updates yet
            members = [client for client, assigned in enumerate(self.assigned) if assigned == cluster]
            if not members or not clients_with_update.issuperset(members):
                continue
            latest = [self.updates.load(client) for client in members]
            self._norms[cluster] = mean_norm, max_norm = norms(latest)
            ready = round >= self.min_rounds and len(members) >= self.min_size
            if ready and mean_norm < self.eps1 and max_norm > self.eps2:
                models.append(self._split(round, cluster, count + len(models), members, similarities(latest)))
        return models

    def _split(self, round: int, cluster: int, child: int, members: Sequence[int], cosines: Any) -> NewModel:
        stay, leave = bipartition(cosines, self.linkage)
        for row in leave:
            self.put(round, members[row], child)
        self._forget(members)
        self.tree.append(
            {
                "round": round,
                "parent": cluster,
                "child": child,
                "stay": [members[row] for row in stay],
                "leave": [members[row] for row in leave],
                "similarity": float(cosines[stay][:, leave].max()),
            }
        )
        return NewModel(child, cluster)

    def _forget(self, clients: Sequence[int]) -> None:
        for client in clients:
            self.updates.save(client, {}, self._round)

    def columns(self) -> dict[str, float]:
        """Return both norms of every cluster whose members have all sent an update to it."""
        columns: dict[str, float] = {}
        for cluster, (mean_norm, max_norm) in self._norms.items():
            columns |= {f"cluster/mean_norm/{cluster}": mean_norm, f"cluster/max_norm/{cluster}": max_norm}
        return columns

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return ``cluster_tree``: a row per split, with the numbers of clients; ``clusters.csv`` has their ids."""
        rows: list[Sequence[object]] = [
            [len(cell) if isinstance(cell := split[name], list) else cell for name in TREE] for split in self.tree
        ]
        return {"cluster_tree": (TREE, rows)}

    def learnt(self) -> dict[str, Any]:  # noqa: D102
        return {"updates": self.updates.state_dict(), "tree": [dict(split) for split in self.tree]}

    def load_learnt(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.updates.load_state_dict(state["updates"])
        self.tree = [dict(split) for split in state["tree"]]

    def checkpointed(self) -> None:  # noqa: D102
        self.updates.checkpointed()
