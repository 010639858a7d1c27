"""FedTiny's progressive pruning: the server grows the entries of the largest mean gradients."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.parts.base import GradientProbe, mean_gradients
from hetfl.parts.growth.base import Exchange, Growth, zeros_like
from hetfl.pruning.densities import Masks
from hetfl.pruning.gradients import GradientRequest, MeanGradients


class ByServer(Growth):
    """The server drops the smallest weights and grows the entries of the largest mean gradients.

    Of each client only as many gradients travel per weight as are exchanged, the largest outside of the mask. Their
    mean is weighted by samples, and counts a gradient that did not travel as 0.

    Huang, Zhang, Sun, Wang: Distributed Pruning Towards Tiny Neural Networks in Federated Learning, ICDCS 2023 (arXiv
    2212.01977), section IV-C. As in the paper: drop by magnitude, top gradients only, the cosine. Not as in the paper:
    all layers are adjusted at once, and an entry that was just dropped cannot be grown.
    """

    def __init__(self, samples: int | None = None) -> None:
        super().__init__(samples)
        self._asked: MeanGradients | None = None

    def consult(self, exchange: Exchange, cohort: Sequence[int], probe: GradientProbe) -> None:  # noqa: D102
        request = GradientRequest(exchange.counts, self.samples)
        self._asked = mean_gradients(exchange.weights(), cohort, probe, request)

    def chosen(self, exchange: Exchange) -> Masks:  # noqa: D102
        if self._asked is None or not self._asked.samples:  # nobody answered
            return exchange.applied(zeros_like(exchange.weights()))
        return exchange.applied({name: mean.abs() for name, mean in self._asked.means.items()})
