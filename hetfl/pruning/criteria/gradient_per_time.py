"""PruneFL's criterion: the squared gradient of a weight per second that it costs."""

from __future__ import annotations

from torch import Tensor

from hetfl.pruning.criteria.base import Evidence, SquaredCriterion


class GradientPerTime(SquaredCriterion):
    r"""The score is :math:`g_j^2 / t_j`, with :math:`t_j` the seconds that the entry costs a client in a round.

    Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: Model Pruning Enables Efficient Federated Learning on Edge Devices,
    IEEE TNNLS 2022 (arXiv 1909.12326), section III-B.

    Args:
        combine: ``mean_of_squares`` (as in the paper) or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    def score(self, square: Tensor, name: str, evidence: Evidence) -> Tensor:  # noqa: D102
        return square / evidence.seconds[name]
