"""Levels that grow during a run, by schedule or where the loss is flat.

Ma, Oh, Park, Kim: FedGMR: Federated Learning with Gradual Model Restoration under Asynchrony and Model Heterogeneity,
2025 (arXiv 2512.05372).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.assignment import Fixed, LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.fleet.stepping import SteppingAssignment
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update


class Growing(LevelAssignment):
    """Clients begin at the levels of :class:`Fixed`, and move to the next larger level at given rounds.

    Small sub-models help early and stall late, so FedGMR makes a client's sub-model larger in the course of a run. Its
    own schedule, and its asynchronous aggregation, are not here.

    Args:
        rounds: the rounds in which every client below the largest level moves up by one level, rising.
        proportions: per level name a positive whole number, of the first levels; None: 1 for each level.

    Raises:
        ConfigurationError: ``rounds`` do not rise, or one of them is below 1.
    """

    def __init__(self, rounds: Sequence[int], proportions: Mapping[str, int] | None = None) -> None:
        self.proportions, self._first = proportions, Fixed(proportions)
        if any(round < 1 for round in rounds) or list(rounds) != sorted(set(rounds)):
            raise ConfigurationError(f"Expected rising rounds of at least 1 for Growing but got {list(rounds)}")
        self.rounds = list(rounds)

    def setup(self, facts: Facts) -> None:  # noqa: D102
        super().setup(facts)
        self._first.setup(facts)

    def draw(self, round: int) -> IntArray:  # noqa: D102
        steps = sum(begins <= round for begins in self.rounds)
        positions: IntArray = np.maximum(self._first.draw(round) - steps, 0)
        return positions


class GrowingOnPlateau(SteppingAssignment):
    r"""Clients begin at the levels of :class:`Fixed`; a client whose loss is flat moves to the next larger level.

    After an accepted update with training loss F, a client's best loss is :math:`F^*`. If
    :math:`F > (1 - \epsilon) F^*` in ``patience`` updates in a row, the client moves up and begins with a new best
    loss. A client that takes no part does not change.

    Args:
        patience: updates in a row without a decrease.
        least: :math:`\epsilon`, the smallest relative decrease that counts.
        proportions: per level name a positive whole number, of the first levels; None: 1 for each level.

    Raises:
        ConfigurationError: ``patience`` is below 1, or ``least`` is not in [0, 1).
    """

    def __init__(self, patience: int = 3, least: float = 0.01, proportions: Mapping[str, int] | None = None) -> None:
        super().__init__(proportions)
        if patience < 1 or not 0.0 <= least < 1.0:
            raise ConfigurationError(
                f"Expected patience of at least 1 and least in [0, 1) for GrowingOnPlateau but got {patience}, {least}"
            )
        self.patience, self.least = patience, least
        self._best = np.zeros(0)
        self._flat = np.zeros(0, np.int64)  # by client, updates in a row without a decrease

    def setup(self, facts: Facts) -> None:  # noqa: D102
        if len(self.steps) != facts.num_clients:
            self._flat, self._best = np.zeros(facts.num_clients, np.int64), np.full(facts.num_clients, np.inf)
        super().setup(facts)

    def moved(self, first: IntArray) -> IntArray:  # noqa: D102
        positions: IntArray = np.maximum(first - self.steps, 0)
        return positions

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Compare a client's loss with its best one."""
        client, decreased = report.client, report.loss <= (1.0 - self.least) * self._best[report.client]
        self._flat[client] = 0 if decreased else self._flat[client] + 1
        self._best[client] = min(self._best[client], report.loss)
        if self._flat[client] == self.patience:
            self.steps[client] += 1
            self._flat[client], self._best[client] = 0, np.inf

    def columns(self) -> dict[str, float]:
        """Return the mean number of levels that clients have moved up, as far as there are larger ones."""
        first = self.first.draw(0)
        return {"assignment/levels_up": float(np.minimum(self.steps, first).mean())}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        arrays = {"best": self._best, "flat": self._flat}
        return {**super().state_dict(), **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        if len(state["best"]) == self.num_clients:
            self._best, self._flat = (state[name].numpy().copy() for name in ("best", "flat"))
