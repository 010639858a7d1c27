"""One aggregator per cluster, and one over all clients for what clusters share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from hetfl.aggregators import Aggregator
from hetfl.local.penalty import SHARED
from hetfl.types import Index, Report
from hetfl.updates import Update

ALL = SHARED
"""The aggregator over all clients."""

Tensors = dict[str, Tensor]


class ClusterAggregators:
    """Takes each update into the aggregator of its cluster; the first cluster's is the one that is given.

    Args:
        aggregator: the run's own; further ones are copies of it.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.first = aggregator
        self._copies: dict[int, Aggregator] = {}

    def reset(self, clusters: Sequence[Mapping[str, Tensor]], shared: frozenset[str]) -> None:
        """Begin a round.

        Args:
            clusters: every global model's tensors by name.
            shared: names of the tensors that are one for all clusters.
        """
        self.clusters, self.shared = clusters, shared
        self._used: set[int] = set()
        if len(clusters) == 1:
            self._of(0)

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Take one client's update; see :class:`hetfl.aggregators.Aggregator`."""
        self._of(report.cluster).update(update, index, report)
        if self.shared:
            self._of(ALL).update(update, index, report)

    def compute(
        self, correct: Callable[[int, Tensors, Tensors], Tensors] | None = None
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Return by name the global tensors that the round is about, their steps and their holders.

        Tensors of a cluster without updates are not among them: they and the optimizer's state of them stay as they
        are. Names of a cluster other than the first are made up.

        Args:
            correct: returns the step that is taken, of a cluster, its own tensors' mean steps and their holders.
        """
        tensors: Tensors = {}
        steps: Tensors = {}
        held: Tensors = {}
        for cluster in sorted(self._used):
            delta, holders = self._of(cluster).compute()
            own = {n: t for n, t in self.clusters[max(cluster, 0)].items() if (n in self.shared) == (cluster == ALL)}
            taken = {name: delta[name] for name in own}
            if correct is not None:
                taken = correct(cluster, taken, holders)
            for name, tensor in own.items():
                key = f"{cluster}:{name}" if cluster > 0 else name
                tensors[key], steps[key], held[key] = tensor, taken[name], holders[name]
        return tensors, steps, held

    def _of(self, cluster: int) -> Aggregator:
        if cluster != 0 and cluster not in self._copies:
            self._copies[cluster] = copy.deepcopy(self.first)
        found = self._copies[cluster] if cluster else self.first
        if cluster not in self._used:
            found.reset(self.clusters[max(cluster, 0)])
            self._used.add(cluster)
        return found
