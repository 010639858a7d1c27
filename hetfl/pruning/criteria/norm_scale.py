"""The scale of a channel in its norm layer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Criterion, Evidence


class NormScale(Criterion):
    r"""The score of a channel is the absolute scale :math:`|\gamma|` of its norm layer; other entries have no score.

    The scales are the parameters of one dimension that are called ``weight``.

    Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    """

    of_norms: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        scales = {name: weight for name, weight in evidence.weights.items() if weight.dim() == 1}
        return {name: scale.abs() for name, scale in scales.items() if name.rpartition(".")[2] == "weight"}
