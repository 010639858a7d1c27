"""FedAvg's mean by number of samples, over holders (McMahan et al., AISTATS 2017, algorithm 1)."""

from __future__ import annotations

from typing import ClassVar

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.types import Report


class SampleMean(HolderMean):
    r"""Mean over the holders of each entry, weighted by the size of their training sets.

    .. math:: \Delta_j = \frac{\sum_{k \in H_j} n_k u_{k,j}}{\sum_{k \in H_j} n_k}

    Use it with uniform selection: with clients drawn in proportion to their size, the size would count twice.

    Args:
        denominator: ``holders``: the sum of weights is over the holders of an entry; ``cohort``: over all clients.

    Raises:
        ConfigurationError: ``denominator`` is neither of them.
    """

    by_size: ClassVar[bool] = True

    def weight(self, report: Report) -> float:
        """Return the client's number of training samples n_k."""
        return float(report.samples)
