"""The weighted mean over holders, with weights that are known only at the end of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.aggregators.robust import Step
from hetfl.part import Part
from hetfl.types import Report
from hetfl.updates import Update


class GivenMean(HolderMean):
    r"""The mean over the holders of each entry, :math:`\sum_k w_k u_{k,j} / \sum_k w_k`, with given weights."""

    def __init__(self) -> None:
        super().__init__()
        self._weight = 1.0

    def weight(self, report: Report) -> float:
        """Return the weight of the update that is being added."""
        return self._weight

    def of(self, tensors: Mapping[str, Tensor], weighted: Iterable[tuple[Update, Part, Report, float]]) -> Step:
        """Return the step and the weight of the holders of every tensor; a weight of 0 leaves an update out.

        Args:
            tensors: the global tensors by name.
            weighted: updates with their weights, at least 0.
        """
        self.reset(tensors)
        for update, part, report, weight in weighted:
            if weight > 0.0:
                self._weight = weight
                self.update(update, part, report)
        return self.compute()


def scaled(update: Update, vector: float, exact: float) -> Update:
    """Return an update with its vector and its exact block multiplied by a factor each."""
    changed = update if vector == 1.0 else update.with_values(update.values * vector)
    return changed if exact == 1.0 else changed.with_exact(update.exact * exact)
