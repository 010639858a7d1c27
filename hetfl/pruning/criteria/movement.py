"""The distance that a weight has moved."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hetfl.arguments import choice
from hetfl.pruning.criteria.base import Criterion, Evidence

Since = Literal["start", "round"]
"""The values that weights are compared with: those at the start of the run, or one round ago."""


class Movement(Criterion):
    r"""The score is the absolute change :math:`|w - w_0|` of a weight.

    Args:
        since: ``start``: since the start of the run; ``round``: in the last round.

    Raises:
        ConfigurationError: ``since`` is neither of them.
    """

    needs_history: ClassVar[bool] = True

    def __init__(self, since: Since = "start") -> None:
        self.since = choice("since", since, Since)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        before = evidence.start if self.since == "start" else evidence.last
        return {name: (weight - before[name]).abs() for name, weight in evidence.weights.items()}
