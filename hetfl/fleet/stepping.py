"""The base class of assignments by which clients move from level to level as their updates arrive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from hetfl.fleet.assignment import Fixed, LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.piece import Facts


class SteppingAssignment(LevelAssignment):
    """Clients begin at the levels of :class:`Fixed`, and move by steps; levels change at the beginning of a round only.

    Args:
        proportions: per level name a positive whole number, of the first levels; None: 1 for each level.

    Attributes:
        first: the assignment before any step.
        steps: by client, the number of levels that it has moved, shape (N,).
    """

    replayable: ClassVar[bool] = False
    for_evaluation: ClassVar[bool] = True

    def __init__(self, proportions: Mapping[str, int] | None = None) -> None:
        self.proportions, self.first = proportions, Fixed(proportions)
        self.steps = np.zeros(0, np.int64)
        self._drawn: tuple[int, IntArray] | None = None  # the last round, and its levels

    def setup(self, facts: Facts) -> None:
        """Set the levels and the clients; with another number of clients, nothing is known of them.

        Raises:
            ConfigurationError: the proportions do not fit the levels or the clients.
        """
        super().setup(facts)
        self.first.setup(facts)
        if len(self.steps) != facts.num_clients:
            self.steps, self._drawn = np.zeros(facts.num_clients, np.int64), None

    @abstractmethod
    def moved(self, first: IntArray) -> IntArray:
        """Return the positions of the clients' levels after their steps, shape (N,).

        Args:
            first: those before any step.
        """

    def draw(self, round: int) -> IntArray:
        """Return the level of every client: in the last round, or in one that begins."""
        if self._drawn is not None and self._drawn[0] == round:
            return self._drawn[1]
        return self.moved(self.first.draw(round))

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._drawn = None
        self._last = None
        self._drawn = (round, self.draw(round))

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        round, levels = self._drawn or (-1, np.zeros(0, np.int64))
        steps = torch.from_numpy(self.steps.copy())
        return {"round": round, "levels": torch.from_numpy(levels.copy()), "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state; clients of other data than the checkpoint's begin without steps."""
        if len(state["steps"]) != self.num_clients:
            self.steps, self._drawn, self._last = np.zeros(self.num_clients, np.int64), None, None
            return
        self.steps = state["steps"].numpy().copy()
        self._drawn, self._last = (state["round"], state["levels"].numpy().copy()), None
