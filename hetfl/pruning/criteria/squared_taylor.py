"""The squared first-order change of the loss without a weight."""

from __future__ import annotations

from torch import Tensor

from hetfl.pruning.criteria.base import Evidence, SquaredCriterion


class SquaredTaylor(SquaredCriterion):
    r"""The score is :math:`(g w)^2`, with the clients' squared gradient for :math:`g^2`.

    For single entries it ranks as :class:`Taylor` does if ``combine`` is ``square_of_mean``. Sums over channels differ.

    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8.

    Args:
        combine: ``mean_of_squares`` or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    def score(self, square: Tensor, name: str, evidence: Evidence) -> Tensor:  # noqa: D102
        return evidence.weights[name].square() * square
