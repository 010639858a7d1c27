"""The first-order change of the loss without a weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Criterion, Evidence


class Taylor(Criterion):
    r"""The score is :math:`|g w|`, the size of the first-order change of the loss if the weight is removed.

    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, CVPR 2019, section 3.
    """

    needs_gradients: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        return {name: (weight * evidence.gradients[name]).abs() for name, weight in evidence.weights.items()}
