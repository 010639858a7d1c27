"""The absolute value of a weight."""

from __future__ import annotations

from torch import Tensor

from hetfl.pruning.criteria.base import Criterion, Evidence


class Magnitude(Criterion):
    r"""The score is the absolute value :math:`|w|`.

    Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015.
    """

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        return {name: weight.abs() for name, weight in evidence.weights.items()}
