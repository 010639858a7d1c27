"""The squared first-order change of the loss without a weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Combination, Criterion, Evidence, combination


class SquaredTaylor(Criterion):
    r"""The score is :math:`(g w)^2`, with the clients' squared gradient for :math:`g^2`.

    For single entries it ranks as :class:`Taylor` does if ``combine`` is ``square_of_mean``. Sums over channels differ.

    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8.

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
        return {name: weight.square() * squares[name] for name, weight in evidence.weights.items()}
