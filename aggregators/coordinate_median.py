"""The coordinate-wise median over the holders of each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from hetfl.aggregators.entrywise import Entrywise, Outside
from hetfl.aggregators.order import Ranks
from hetfl.aggregators.robust import RobustAggregator, Step
from hetfl.aggregators.waiting import Waiting


class CoordinateMedian(RobustAggregator):
    r"""The median over the holders of each entry; of an even number, the mean of the two in the middle.

    .. math:: \Delta_j = \operatorname{median}_{k \in H_j} u_{k,j}, \qquad H_j = \{k : j \in \text{index}_k\}

    Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018 (arXiv 1803.01498), option I, for
    clients that hold all entries.

    Needs updates with all entries: the median of many entries that were not sent would be 0. See
    :class:`~hetfl.aggregators.entrywise.Entrywise` for how many hostile clients it bears.

    Args:
        min_holders: fewest holders of an entry for the rule.
        outside: what happens to entries with fewer holders: ``keep``: they keep their values; ``clip``: they move by
            the mean of updates that are clipped to the usual norm of their level; ``mean``: by the mean.
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: a number is out of its range, or ``outside`` is unknown.
    """

    takes_sparse: ClassVar[bool] = False

    def __init__(self, min_holders: int = 3, outside: Outside = "clip", most_bytes: int | None = None) -> None:
        super().__init__(most_bytes)
        self.min_holders, self.outside = min_holders, outside
        self._rule = Entrywise(self.ranks, min_holders, outside)

    def ranks(self, holders: int) -> Ranks:
        """Return the ranks in the middle.

        >>> CoordinateMedian().ranks(5), CoordinateMedian().ranks(4)
        ((2, 3), (1, 3))
        """
        return (holders - 1) // 2, holders // 2 + 1

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:  # noqa: D102
        return self._rule.combine(tensors, waiting)
