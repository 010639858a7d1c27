"""Selection in proportion to size: the default sampling of q-FFL and of Power-of-Choice's baseline."""

from __future__ import annotations

from typing import ClassVar

from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import proportionally


class SizeWeighted(Selection):
    r"""m of the reachable clients, without replacement, each draw with probability proportional to :math:`n_k`.

    Larger clients take part more often, so all updates should have the same weight (``HolderMean``): an aggregator that
    weights by size is refused. This is the sampling of Li et al., "Fair Resource Allocation in Federated Learning"
    (ICLR 2020, arXiv 1905.10497), and of the random baseline of Cho et al. (arXiv 2010.01243). Cohorts are a function
    of (seed, round).
    """

    replayable: ClassVar[bool] = True
    by_size: ClassVar[bool] = True

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        return proportionally(
            probe.clients, self.sizes, self.clients_per_round, generator(self.seed, "selection", round)
        )
