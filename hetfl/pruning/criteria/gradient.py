"""The absolute gradient of a weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hetfl.pruning.criteria.base import Criterion, Evidence


class Gradient(Criterion):
    r"""The score is the absolute mean gradient :math:`|\sum_k p_k g_k|` of the clients.

    Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets Winners, ICML 2020, section 3.
    """

    needs_gradients: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        return {name: evidence.gradients[name].abs() for name in evidence.weights}
