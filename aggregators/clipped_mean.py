"""The mean over holders of updates that are clipped to the usual norm of their level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from hetfl.aggregators.robust import RobustAggregator, Step, clipped
from hetfl.aggregators.waiting import Waiting
from hetfl.aggregators.weighted import GivenMean, scaled
from hetfl.errors import ConfigurationError


class ClippedMean(RobustAggregator):
    r"""The mean over the holders of each entry, of updates that are at most as long as usual at their level.

    .. math:: \Delta_j = \frac{1}{|H_j|} \sum_{k \in H_j} u_{k,j} \min\Bigl(1, \frac{c_k}{\lVert u_k \rVert_2}\Bigr),
        \qquad c_k = f \sqrt{d_k} \cdot \operatorname{median}_{i \in \ell(k)} \frac{\lVert u_i \rVert_2}{\sqrt{d_i}}

    with :math:`\ell(k)` the round's updates of the client's level, :math:`d_k` the entries of an update, and f the
    factor. One bound for all levels would clip only wide sub-models, whose updates are longer. A level of fewer than
    three updates takes the median of the nearest size that has three. Float buffers are clipped by their own norms.

    A hostile client pulls no further than an honest one, and still pulls: the rule bounds the damage of a few, and with
    f = 1 shortens half of the honest updates. With one level and f = 1 it is the norm clipping of Sun, Kairouz, Suresh,
    McMahan (2019, arXiv 1911.07963) with the median of the round as bound.

    Args:
        factor: f, above 0.
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, factor: float = 1.0, most_bytes: int | None = None) -> None:
        super().__init__(most_bytes)
        if not 0.0 < factor < math.inf:
            raise ConfigurationError(f"Expected a finite factor above 0 for ClippedMean but got {factor}")
        self.factor = factor
        self._mean = GivenMean()

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:  # noqa: D102
        factors = clipped(waiting, self.factor)
        return self._mean.of(
            tensors,
            (
                (scaled(each.update, *factor), each.part, each.report, 1.0)
                for each, factor in zip(waiting, factors, strict=True)
            ),
        )
