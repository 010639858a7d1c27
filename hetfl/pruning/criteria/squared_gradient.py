"""The squared gradient of a weight."""

from __future__ import annotations

from torch import Tensor

from hetfl.pruning.criteria.base import Evidence, SquaredCriterion


class SquaredGradient(SquaredCriterion):
    r"""The score is the squared gradient, :math:`\sum_k p_k g_k^2` or :math:`(\sum_k p_k g_k)^2`.

    The mean of squares keeps entries on whose direction clients disagree.

    Args:
        combine: ``mean_of_squares`` or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    def score(self, square: Tensor, name: str, evidence: Evidence) -> Tensor:  # noqa: D102
        return square
