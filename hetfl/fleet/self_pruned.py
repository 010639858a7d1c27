"""Clients that move to a smaller rank when their largest ranks lose weight in training (HetLoRA)."""

from __future__ import annotations

import numpy as np

from hetfl.fleet.numbers import IntArray
from hetfl.fleet.stepping import SteppingAssignment
from hetfl.layout import Index
from hetfl.types import Range, Report
from hetfl.updates import Update

TAIL_CHANGE = "tail_change"
"""The extra of a report: the change of a client's tail score in its training."""


class SelfPruned(SteppingAssignment):
    """Clients begin at the levels of :class:`Fixed`; one whose tail score falls moves to the next smaller level.

    The tail of a level is what the next smaller level lacks. :class:`~hetfl.methods.HetLoRA` reports the change of its
    score in a client's training. A client at the smallest level stays there, and no client moves up.

    Args:
        proportions: per level name a positive whole number, of the first levels; None: 1 for each level.
    """

    def extras(self) -> dict[str, Range]:
        """Return the range of the change of a tail score."""
        return {TAIL_CHANGE: Range(-1e9, 1e9, "as the change of a tail score")}

    def moved(self, first: IntArray) -> IntArray:  # noqa: D102
        positions: IntArray = np.minimum(first + self.steps, len(self.names) - 1)
        return positions

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Move a client down whose tail score has fallen."""
        smallest = len(self.names) - 1 - self.first.draw(0)[report.client]
        if report.extras[TAIL_CHANGE] < 0.0:
            self.steps[report.client] = min(self.steps[report.client] + 1, smallest)

    def columns(self) -> dict[str, float]:
        """Return the mean number of levels that clients have moved down."""
        return {"assignment/levels_down": float(self.steps.mean())}
