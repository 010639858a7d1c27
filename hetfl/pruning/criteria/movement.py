"""The distance that a weight has moved."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.pruning.criteria.base import Criterion, Evidence


class Movement(Criterion):
    r"""The score is the absolute change :math:`|w - w_0|` of a weight.

    Args:
        since: ``start``: since the start of the run; ``round``: in the last round.

    Raises:
        ConfigurationError: ``since`` is neither of them.
    """

    needs_history: ClassVar[bool] = True

    def __init__(self, since: Literal["start", "round"] = "start") -> None:
        if since not in ("start", "round"):
            raise ConfigurationError(f"Expected since to be start or round but got {since!r}")
        self.since = since

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        before = evidence.start if self.since == "start" else evidence.last
        return {name: (weight - before[name]).abs() for name, weight in evidence.weights.items()}
