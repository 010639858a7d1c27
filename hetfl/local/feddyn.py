"""FedDyn: clients and server remember gradients, so that local optima agree with the global one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.local.penalty import Penalty
from hetfl.store import ClientStore, MemoryStore
from hetfl.submodel import add, index_layout
from hetfl.types import Index
from hetfl.updates import Update


class FedDyn(Penalty):
    r"""Dynamic regularisation (Acar et al., ICLR 2021, arXiv 2111.04263), per entry as sub-models need it.

    With :math:`g_k` the memory of client k, h the server's, :math:`u_k` the update as sent, and N the number of *all*
    clients:

    .. math::
        \text{client:}\quad & \min_\theta f_k(\theta) - \langle g_k, \theta \rangle
            + \tfrac{\alpha}{2} \lVert \theta - \theta_t \rVert^2, \qquad g_k \leftarrow g_k - \alpha u_k \\
        \text{server:}\quad & h \leftarrow h - \tfrac{\alpha}{N} \textstyle\sum_k u_k, \qquad
            \theta_{t+1} = \bar\theta - h / \alpha \ \text{ where someone holds the entry}

    So h stays the mean of all :math:`g_k`, of which those of clients never asked are 0. Only trained parameters take
    part. With few clients a round and a large α it can diverge: h grows with partial participation. DepthFL (ICLR 2023,
    section 3.3) uses it with α = 0.1.

    Args:
        alpha: the weight α.
        memories: where :math:`g_k` is kept; None: in memory.

    Raises:
        ConfigurationError: α is not positive.
    """

    def __init__(self, alpha: float = 0.1, memories: ClientStore | None = None) -> None:
        if not alpha > 0:
            raise ConfigurationError(f"Expected alpha above 0 for FedDyn but got {alpha}")
        self.alpha = alpha
        self.memories: ClientStore = MemoryStore() if memories is None else memories
        self.server: dict[str, Tensor] = {}

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"alpha": self.alpha, "memories": type(self.memories).__name__}

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None
    ) -> None:
        grad_D.add_(theta_D - anchor_D, alpha=self.alpha)
        if memory_D is not None:
            grad_D.sub_(memory_D)

    def setup(self, parameters: Mapping[str, Tensor], num_clients: int) -> None:  # noqa: D102
        self.num_clients = num_clients
        known = self.server if self.server.keys() == parameters.keys() else {}  # of the run before, or a checkpoint's
        self.server = {name: known.get(name, torch.zeros_like(p)).to(p).detach() for name, p in parameters.items()}

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.memories.bind(folder)

    def memory(self, client: int, index: Index, like: Tensor) -> Tensor | None:  # noqa: D102
        return self.memories.read(client, index, like)

    def accept(self, index: Index, update: Update) -> None:  # noqa: D102
        sent_D = update.to_dense().to(next(iter(self.server.values())))
        for (name, entry), sent in zip(index.items(), index_layout(index).views(sent_D).values(), strict=True):
            add(self.server[name], entry, sent, -self.alpha / self.num_clients)

    def remember(self, client: int, round: int, index: Index, update: Update) -> None:  # noqa: D102
        sent_D = update.to_dense()
        before = self.memories.read(client, index, sent_D)
        step_D = -self.alpha * sent_D
        self.memories.write(client, index, step_D if before is None else before + step_D, round)

    def correct(self, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102
        corrected = {
            name: torch.where(holders[name] > 0, delta[name] - h / self.alpha, delta[name])
            for name, h in self.server.items()
        }
        return {**delta, **corrected}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"server": self.server, "memories": self.memories.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.server = dict(state["server"])
        self.memories.load_state_dict(state["memories"])

    def checkpointed(self) -> None:  # noqa: D102
        self.memories.checkpointed()
