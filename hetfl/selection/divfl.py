"""DivFL: few clients whose updates together stand for everybody's."""

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

    chosen greedily among the clients within reach, to stand for all clients. :math:`g_k = u_k / \gamma` is the client's
    latest update as the server decoded it, over the learning rate of its round, for trained parameters; C are the
    entries that both updates cover. With full models d is the paper's Euclidean distance times a constant. Without
    common entries :math:`d^2` is the sum of both mean squares, as if the updates were orthogonal.

    The paper asks everyone at round 0; here those whose update the server has never taken come first, drawn uniformly,
    until there are none left. Later only the clients of a cohort are looked at anew. What others did is known as of
    their last round: with stale updates the greedy choice may repeat itself; ``sample`` leaves some of it to chance.

    A chosen client counts as many as it stands for (γ_i in the paper): itself, and the clients outside the cohort that
    lie nearest to it, ties for the one chosen first. Clients of whom nothing is known, and all of them if nothing is
    known of the cohort, are shared out evenly. These weights sum to N and act in
    :class:`~hetfl.aggregators.SelectionMean`; the paper's own code leaves them out, as any other aggregator does.

    Every update is compared with those of all N clients: about m N times the size of the model in operations a round.
    N updates are kept, and :math:`8 N^2` bytes of distances, in every checkpoint too.

    Args:
        clients_per_round: size m of the cohort; with fewer clients within reach, all of these.
        sample: clients that are looked at for each choice, drawn anew (stochastic greedy); None: all (lazy greedy).
        updates: where updates are kept; None: in memory.

    Raises:
        ConfigurationError: the sample is empty.
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
            for client in self.updates.clients():  # of another fleet
                self.updates.save(client, {}, 0)
            self.distances_NN = torch.zeros(facts.num_clients, facts.num_clients, dtype=torch.float64)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.updates.bind(folder)

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        self._round, random = round, generator(self.seed, "selection", round)
        known = self.updates.clients()
        met = set(known)
        strangers = [client for client in probe.clients if client not in met]
        first = uniformly(strangers, self.clients_per_round, random)
        able = [client for client in probe.clients if client in met]
        distances_CV = self.distances_NN[able][:, known]
        left = self.clients_per_round - len(first)
        if self.sample is None:
            rows = lazy_greedy(distances_CV, left)
        else:
            rows = stochastic_greedy(distances_CV, left, self.sample, random)
        chosen = [able[row] for row in rows]
        self._weights = self._represented(first + chosen, chosen, known)
        return first + chosen

    def _represented(self, cohort: list[int], chosen: list[int], known: list[int]) -> dict[int, float]:
        """Return how many clients each of the cohort stands for; ``chosen`` are those that others can be near to."""
        weights = dict.fromkeys(cohort, 1.0)
        others = [client for client in known if client not in weights] if chosen else []
        if others:
            for row in self.distances_NN[chosen][:, others].argmin(0).tolist():
                weights[chosen[row]] += 1.0
        alone = len(self.sizes) - len(cohort) - len(others)
        return {client: weight + alone / len(cohort) for client, weight in weights.items()}

    def weight(self, client: int) -> float:
        """Return γ_i: the number of clients that a client of the last selected cohort stands for."""
        return self._weights[client]

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        # The whole update is the latest: entries of an earlier round, at another level, are forgotten.
        self.updates.save(report.client, _gradient(update, index, report.lr), self._round)
        self._fresh.add(report.client)

    def end_round(self, round: int) -> None:
        """Bring the distances from and to the clients of the round up to date."""
        fresh = {client: self.updates.load(client) for client in sorted(self._fresh)}
        for other in self.updates.clients() if fresh else ():
            blocks = fresh[other] if other in fresh else self.updates.load(other)
            for client, own in fresh.items():
                apart = 0.0 if client == other else distance(own, blocks)
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
    return blocks_of(update.to_dense() / lr if lr else update.to_dense(), index)  # a rate of 0 moves nothing


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the root mean square difference of two updates over the entries that both cover; see :class:`DivFL`.

    Args:
        one: blocks by name of the tensor, NaN where the update covers nothing.
        other: likewise.
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
