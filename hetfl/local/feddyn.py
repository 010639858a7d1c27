"""FedDyn: clients and server keep sums of gradients, so that local optima agree with the global optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index, Layout
from hetfl.local.penalty import LARGEST, Penalty
from hetfl.part import only
from hetfl.piece import Facts
from hetfl.store import ClientStore, MemoryStore
from hetfl.submodel import add
from hetfl.types import SHARED, Report
from hetfl.updates import Update


class FedDyn(Penalty):
    r"""Dynamic regularisation (Acar et al., ICLR 2021, arXiv 2111.04263), applied per entry for sub-models.

    With :math:`g_k` the memory of client k, h the memory of the server, :math:`u_k` the decoded update, and N the
    number of *all* clients:

    .. math::
        \text{client:}\quad & \min_\theta f_k(\theta) - \langle g_k, \theta \rangle
            + \tfrac{\alpha}{2} \lVert \theta - \theta_t \rVert^2, \qquad g_k \leftarrow g_k - \alpha u_k \\
        \text{server:}\quad & h \leftarrow h - \tfrac{\alpha}{N} \textstyle\sum_k u_k, \qquad
            \theta_{t+1} = \bar\theta - h / \alpha \ \text{ for entries with holders}

    So h is always the mean of all :math:`g_k`; :math:`g_k = 0` for a client that has never taken part. Only trained
    parameters take part.

    With several global models, every cluster c is one such federation: its h is always the mean over its members,

    .. math:: h_c = \frac{1}{N_c} \textstyle\sum_{k \in c} g_k, \qquad N_c = N \, \frac{n_c}{\sum_{c'} n_{c'}},

    where :math:`n_c` clients are known to be in cluster c. Clients without a known cluster count as distributed over
    the clusters like the others. A client that changes its cluster takes its memory along, and h of both clusters
    changes at once; a split is a change of cluster for the clients that leave. This is necessary: at a stationary point
    the memories of a model's clients sum to 0, and after a split the mean over a new cluster's members moves that
    cluster's model. Tensors that clusters share have one h, over all clients. (The paper has one model. This is its
    definition of h, applied to each cluster.)

    :class:`~hetfl.clustering.ClusteredFL` splits by the clients' updates. Over the rounds, memories remove from the
    updates the pull towards each client's local optimum. So let it split in early rounds, or choose its norms for runs
    with FedDyn.

    With few clients a round and a large α FedDyn can diverge: h grows with partial participation. DepthFL (ICLR 2023,
    section 3.3) uses it with α = 0.1.

    Args:
        alpha: the weight α.
        memories: the store of :math:`g_k`; None: in memory.

    Raises:
        ConfigurationError: α is so small or so large that quotients or products with it leave the range of float32.

    Attributes:
        server: by cluster, and for :data:`~hetfl.types.SHARED`, :math:`\frac{1}{N} \sum_{k \in c} g_k`, by
            name of a tensor.
        where: shape (N,), the cluster whose sum contains a client's memory; -1: none.
    """

    def __init__(self, alpha: float = 0.1, memories: ClientStore | None = None) -> None:
        if not 1 / LARGEST <= alpha <= LARGEST:
            raise ConfigurationError(f"Expected alpha from {1 / LARGEST:g} to {LARGEST:g} for FedDyn but got {alpha}")
        self.alpha = alpha
        self.memories: ClientStore = MemoryStore() if memories is None else memories
        self.server: dict[int, dict[str, Tensor]] = {}
        self.where = torch.empty(0, dtype=torch.int64)

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        grad_D.add_(theta_D - anchor_D, alpha=self.alpha)
        if memory_D is not None:
            grad_D.sub_(memory_D)

    def setup(self, facts: Facts) -> None:
        """Set the number N of clients and the models' parameters; drop sums of models with other parameters.

        Raises:
            ConfigurationError: clients train several models at once.
        """
        if facts.apart:
            raise ConfigurationError("Expected clients that train one model each for FedDyn but got several models")
        self.num_clients, self.shared, self._parameters = facts.num_clients, facts.shared, facts.parameters
        if not all(sums.keys() <= facts.parameters.keys() for sums in self.server.values()):
            self.server = {}
        if len(self.where) != facts.num_clients:
            self.where = torch.full((facts.num_clients,), -1)

    def begin(self) -> None:  # noqa: D102
        self.server = {
            cluster: {name: total.to(self._parameters[name]).detach() for name, total in sums.items()}
            for cluster, sums in self.server.items()
        }

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.memories.bind(folder)

    def memory(self, client: int, index: Index, like: Tensor) -> Tensor | None:  # noqa: D102
        return self.memories.read(client, index, like)

    def regroup(self, clusters: Sequence[int]) -> None:  # noqa: D102
        new = torch.tensor(clusters, dtype=torch.int64)
        for client in ((new >= 0) & (new != self.where)).nonzero().flatten().tolist():
            self._put(client, clusters[client])

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self._put(report.client, report.model)
        sent_D, held = update.to_dense(), only(index, frozenset(self._parameters))
        sent_D = sent_D.to(next(iter(self._parameters.values())))
        for (name, entry), sent in zip(held.items(), held.layout.views(held.spread(sent_D)).values(), strict=True):
            add(self._sum(report.model, name), entry, sent, -self.alpha / self.num_clients)

    def remember(self, client: int, round: int, index: Index, update: Update) -> None:  # noqa: D102
        sent_D = update.to_dense()
        before = self.memories.read(client, index, sent_D)
        step_D = -self.alpha * sent_D
        self.memories.write(client, index, step_D if before is None else before + step_D, round)

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the step plus the server's term, -h / α, for a cluster's model or for the shared tensors."""
        share = 1.0 if model == SHARED else int((self.where == model).sum()) / int((self.where >= 0).sum())
        sums = self.server.get(model, {})
        return {**delta, **{name: delta[name] - total / share / self.alpha for name, total in sums.items()}}

    def _put(self, client: int, cluster: int) -> None:
        """Move a client's memory from the sum of its previous cluster to the sum of ``cluster``."""
        before, self.where[client] = int(self.where[client]), cluster
        if before in (-1, cluster):
            return
        for name, block in self.memories.load(client).items():
            if name not in self.shared:
                part = tuple(slice(size) for size in block.shape)
                for total, sign in ((self._sum(before, name), -1), (self._sum(cluster, name), 1)):
                    total[part].add_(block.to(total), alpha=sign / self.num_clients)

    def _sum(self, cluster: int, name: str) -> Tensor:
        """Return the server's sum of a tensor for a cluster, zero at first."""
        sums = self.server.setdefault(SHARED if name in self.shared else cluster, {})
        if name not in sums:
            sums[name] = torch.zeros_like(self._parameters[name]).detach()
        return sums[name]

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"server": self.server, "where": self.where, "memories": self.memories.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.server = {cluster: dict(sums) for cluster, sums in state["server"].items()}
        self.where = state["where"].clone()
        self.memories.load_state_dict(state["memories"])

    def checkpointed(self) -> None:  # noqa: D102
        self.memories.checkpointed()
