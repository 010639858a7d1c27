"""Clients that move to a smaller rank when their largest ranks lose weight in training (HetLoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from hetfl.fleet.assignment import Fixed, LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Range, Report
from hetfl.updates import Update

TAIL_CHANGE = "tail_change"
"""The extra of a report: the change of a client's tail score in its training."""


class SelfPruned(LevelAssignment):
    """Clients begin at the levels of :class:`Fixed`; one whose tail score falls moves to the next smaller level.

    The tail of a level is what the next smaller level lacks. :class:`~hetfl.methods.HetLoRA` reports the change of its
    score in a client's training. A client at the smallest level stays there, and no client moves up.

    Args:
        proportions: per level name a positive whole number, of the first levels; None: 1 for each level.
    """

    replayable: ClassVar[bool] = False
    for_evaluation: ClassVar[bool] = True

    def __init__(self, proportions: Mapping[str, int] | None = None) -> None:
        self.proportions, self._first = proportions, Fixed(proportions)
        self._steps = np.zeros(0, np.int64)  # by client, the number of levels that it has moved down
        self._drawn: tuple[int, IntArray] | None = None  # the last round, and its levels

    def setup(self, facts: Facts) -> None:
        """Set the levels and the clients; with another number of clients, nothing is known of them.

        Raises:
            ConfigurationError: the proportions do not fit the levels or the clients.
        """
        super().setup(facts)
        self._first.setup(facts)
        if len(self._steps) != facts.num_clients:
            self._steps, self._drawn = np.zeros(facts.num_clients, np.int64), None

    def extras(self) -> dict[str, Range]:
        """Return the range of the change of a tail score."""
        return {TAIL_CHANGE: Range(-1e9, 1e9, "as the change of a tail score")}

    def draw(self, round: int) -> IntArray:
        """Return the level of every client: in the last round, or in one that begins."""
        if self._drawn is not None and self._drawn[0] == round:
            return self._drawn[1]
        positions: IntArray = np.minimum(self._first.draw(round) + self._steps, len(self.names) - 1)
        return positions

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._drawn = None
        self._last = None
        self._drawn = (round, self.draw(round))

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Move a client down whose tail score has fallen."""
        smallest = len(self.names) - 1 - self._first.draw(0)[report.client]
        if report.extras[TAIL_CHANGE] < 0.0:
            self._steps[report.client] = min(self._steps[report.client] + 1, smallest)

    def columns(self) -> dict[str, float]:
        """Return the mean number of levels that clients have moved down."""
        return {"assignment/levels_down": float(self._steps.mean())}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        round, levels = self._drawn or (-1, np.zeros(0, np.int64))
        return {
            "round": round,
            "levels": torch.from_numpy(levels.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._steps = state["steps"].numpy().copy()
        self._drawn, self._last = (state["round"], state["levels"].numpy().copy()), None
