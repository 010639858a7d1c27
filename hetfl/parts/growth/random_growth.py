"""Random entries are grown."""

from __future__ import annotations

from typing import ClassVar

from hetfl.parts.growth.base import Exchange, Growth
from hetfl.pruning.criteria import Evidence, RandomScore
from hetfl.pruning.densities import Masks


class RandomGrowth(Growth):
    """The server drops the smallest weights and grows random entries; clients are not asked.

    Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta: Scalable Training of Artificial Neural Networks with Adaptive Sparse
    Connectivity inspired by Network Science, Nature Communications 2018.
    """

    asks_gradients: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()

    def chosen(self, exchange: Exchange) -> Masks:  # noqa: D102
        return exchange.applied(RandomScore().scores(Evidence(exchange.weights(), seed=exchange.seed)))
