"""The squared gradient of a weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Combination, Criterion, Evidence, combination


class SquaredGradient(Criterion):
    r"""The score is the squared gradient, :math:`\sum_k p_k g_k^2` or :math:`(\sum_k p_k g_k)^2`.

    The mean of squares keeps entries on whose direction clients disagree.

    Args:
        combine: ``mean_of_squares`` or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(self, combine: Combination = "mean_of_squares") -> None:
        self.combine = combination(combine)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        squares = evidence.squared(self.combine)
        return {name: squares[name] for name in evidence.weights}
