"""DivFL: selects a few clients whose updates represent the updates of all clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hetfl.entries import blocks_of
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import uniformly
from hetfl.selection.facility_location import lazy_greedy, stochastic_greedy
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import Report
from hetfl.updates import Update


class DivFL(Selection):
    r"""Diverse client selection by facility location (Balakrishnan et al., ICLR 2022).

    .. math:: S_t \approx \arg\min_{|S| = m} \sum_{k} \min_{i \in S} d(i, k), \qquad
              d(i, k)^2 = \frac{1}{|C|} \sum_{j \in C} (g_{i,j} - g_{k,j})^2

    chosen greedily among the reachable clients, to represent all clients. :math:`g_k = u_k / \gamma` is the client's
    latest decoded update, divided by the learning rate of its round, for trained parameters. C is the set of entries
    that both updates cover. With full models d is the paper's Euclidean distance times a constant. Without common
    entries :math:`d^2` is the sum of both mean squares, as for orthogonal updates.

    The paper asks all clients in round 0. Here clients without an accepted update are selected first, drawn uniformly,
    until there are none left. Later only the updates of a cohort are renewed, so distances may be stale and the greedy
    choice may repeat itself; ``sample`` makes part of the choice random.

    The weight of a chosen client is the number of clients that it represents (γ_i in the paper): itself, and the
    clients outside the cohort for which it is the nearest, with ties for the client chosen first. Clients without an
    update are divided evenly over the cohort, as are all clients if the whole cohort has no updates yet. The weights
    sum to N and are used by :class:`~hetfl.aggregators.SelectionMean`; the paper's code ignores them, as do all other
    aggregators.

    A round compares m updates with those of all N clients, in about m N times the model's size in operations. N updates
    and :math:`8 N^2` bytes of distances are kept, also in checkpoints.

    Args:
        clients_per_round: size m of the cohort; with fewer reachable clients, all of these.
        sample: number of clients considered for each choice, drawn anew (stochastic greedy); None: all (lazy greedy).
        updates: the store of updates; None: in memory.

    Raises:
        ConfigurationError: ``sample`` is below 1.
    """

    def __init__(
        self, clients_per_round: int = 10, sample: int | None = None, updates: ClientStore | None = None
    ) -> None:
        super().__init__(clients_per_round)
        if sample is not None and sample < 1:
            raise ConfigurationError(f"Expected sample of at least 1 client or null but got {sample}")
        self.sample = sample
        self.updates = MemoryStore() if updates is None else updates
        self.distances_NN = torch.empty(0, 0)
        self._fresh: set[int] = set()
        self._weights: dict[int, float] = {}
        self._round = 0

    def setup(self, facts: Facts) -> None:  # noqa: D102
        super().setup(facts)
        if len(self.distances_NN) != facts.num_clients:
            for client in self.updates.clients():  # updates of a run with another number of clients
                self.updates.save(client, {}, 0)
            self.distances_NN = torch.zeros(facts.num_clients, facts.num_clients, dtype=torch.float64)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.updates.bind(folder)

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        self._round, random = round, generator(self.seed, "selection", round)
        known = self.updates.clients()
        known_set = set(known)
        unknown = [client for client in probe.clients if client not in known_set]
        first = uniformly(unknown, self.clients_per_round, random)
        candidates = [client for client in probe.clients if client in known_set]
        distances_CV = self.distances_NN[candidates][:, known]
        left = self.clients_per_round - len(first)
        if self.sample is None:
            rows = lazy_greedy(distances_CV, left)
        else:
            rows = stochastic_greedy(distances_CV, left, self.sample, random)
        chosen = [candidates[row] for row in rows]
        self._weights = self._represented(first + chosen, chosen, known)
        return first + chosen

    def _represented(self, cohort: list[int], chosen: list[int], known: list[int]) -> dict[int, float]:
        """Return by client of the cohort the number of clients that it represents.

        Args:
            cohort: all selected clients.
            chosen: those of them with an update.
            known: all clients with an update.
        """
        weights = dict.fromkeys(cohort, 1.0)
        others = [client for client in known if client not in weights] if chosen else []
        if others:
            for row in self.distances_NN[chosen][:, others].argmin(0).tolist():
                weights[chosen[row]] += 1.0
        unrepresented = len(self.sizes) - len(cohort) - len(others)
        return {client: weight + unrepresented / len(cohort) for client, weight in weights.items()}

    def weight(self, client: int) -> float:
        """Return γ_i: the number of clients that a client of the last cohort represents."""
        return self._weights[client]

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        # Only the latest update is kept: entries of an earlier round at another level are dropped.
        self.updates.save(report.client, _gradient(update, index, report.lr), self._round)
        self._fresh.add(report.client)

    def end_round(self, round: int) -> None:
        """Compute the distances between the round's new updates and all updates."""
        fresh = {client: self.updates.load(client) for client in sorted(self._fresh)}
        for other in self.updates.clients() if fresh else ():
            blocks = fresh[other] if other in fresh else self.updates.load(other)
            for client, new_blocks in fresh.items():
                apart = 0.0 if client == other else distance(new_blocks, blocks)
                self.distances_NN[client, other] = self.distances_NN[other, client] = apart
        self._fresh.clear()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"updates": self.updates.state_dict(), "distances": self.distances_NN.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.updates.load_state_dict(state["updates"])
        self.distances_NN = state["distances"].clone()

    def checkpointed(self) -> None:  # noqa: D102
        self.updates.checkpointed()


def _gradient(update: Update, index: Index, lr: float) -> dict[str, Tensor]:
    """Return u/γ as blocks in global coordinates, NaN at entries of a block that the update does not cover."""
    return blocks_of(update.to_dense() / lr if lr else update.to_dense(), index)  # with lr = 0 the update is zero


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the root mean square difference of two updates over the entries that both cover; see :class:`DivFL`.

    Args:
        one: blocks by name of the tensor, NaN at entries that the update does not cover.
        other: the same for the other update.
    """
    total, common = _summed(_difference(one[name], other[name]) for name in one if name in other)
    if common:
        return math.sqrt(total / common)
    return math.sqrt(sum(squares / max(1, count) for squares, count in map(_summed, (one.values(), other.values()))))


def _difference(one: Tensor, other: Tensor) -> Tensor:
    overlap = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[overlap] - other[overlap]


def _summed(blocks: Iterable[Tensor]) -> tuple[float, int]:
    """Return the sum of squares of all entries that are not NaN, and their number."""
    squares, count = [], 0
    for block in blocks:
        norm = float(torch.linalg.vector_norm(block, dtype=torch.float64))
        if math.isnan(norm):
            block = block[~block.isnan()]
            norm = float(torch.linalg.vector_norm(block, dtype=torch.float64))
        squares.append(norm * norm)
        count += block.numel()
    return math.fsum(squares), count
