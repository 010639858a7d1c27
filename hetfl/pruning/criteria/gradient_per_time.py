"""PruneFL's criterion: the squared gradient of a weight per second that it costs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Combination, Criterion, Evidence, combination


class GradientPerTime(Criterion):
    r"""The score is :math:`g_j^2 / t_j`, with :math:`t_j` the seconds that the entry costs a client in a round.

    Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: Model Pruning Enables Efficient Federated Learning on Edge Devices,
    IEEE TNNLS 2022 (arXiv 1909.12326), section III-B.

    Args:
        combine: ``mean_of_squares`` (as in the paper) or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(self, combine: Combination = "mean_of_squares") -> None:
        self.combine = combination(combine)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        squares = evidence.squared(self.combine)
        return {name: squares[name] / evidence.seconds[name] for name in evidence.weights}
