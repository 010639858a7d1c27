"""The trimmed mean over the holders of each entry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from hetfl.aggregators.entrywise import Entrywise, Outside
from hetfl.aggregators.order import Ranks
from hetfl.aggregators.robust import RobustAggregator, Step
from hetfl.aggregators.waiting import Waiting
from hetfl.errors import ConfigurationError


class TrimmedMean(RobustAggregator):
    r"""The mean over the holders of each entry without its largest and its smallest values.

    .. math:: \Delta_j = \frac{1}{n_j - 2 b_j} \sum_{r = b_j}^{n_j - b_j - 1} u_{(r), j}, \qquad
        b_j = \min\Bigl(\lceil \beta n_j \rceil, \Bigl\lfloor \frac{n_j - 1}{2} \Bigr\rfloor\Bigr)

    with :math:`u_{(r), j}` the sorted values of the :math:`n_j` holders. :math:`\beta n_j` is rounded up: rounded down
    it would trim nothing where few clients hold an entry.

    Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018 (arXiv 1803.01498), option II,
    for clients that hold all entries.

    Args:
        share: :math:`\beta`, the share that is left out at each end, in [0, 0.5).
        min_holders: fewest holders of an entry for the rule.
        outside: what happens to entries with fewer holders: ``keep``: they keep their values; ``clip``: they move by
            the mean of updates that are clipped to the usual norm of their level; ``mean``: by the mean.
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    takes_sparse: ClassVar[bool] = False

    def __init__(
        self, share: float = 0.2, min_holders: int = 3, outside: Outside = "clip", most_bytes: int | None = None
    ) -> None:
        super().__init__(most_bytes)
        if not 0.0 <= share < 0.5:
            raise ConfigurationError(f"Expected share in [0, 0.5) for TrimmedMean but got {share}")
        self.share, self.min_holders, self.outside = share, min_holders, outside
        self._rule = Entrywise(self.ranks, min_holders, outside)

    def ranks(self, holders: int) -> Ranks:
        """Return the ranks that are not trimmed.

        >>> [TrimmedMean(0.2).ranks(holders) for holders in (1, 2, 3, 5, 11)]
        [(0, 1), (0, 2), (1, 2), (1, 4), (3, 8)]
        """
        trimmed = min(math.ceil(round(self.share * holders, 9)), (holders - 1) // 2)
        return trimmed, holders - trimmed

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:  # noqa: D102
        return self._rule.combine(tensors, waiting)
