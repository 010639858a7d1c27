"""One level for all clients of a round, as in the baseline UP-FL of FedMP (Jiang et al., ICDE 2022)."""

from __future__ import annotations

import numpy as np
import torch

from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.fleet.outlook import Outlook
from hetfl.seeding import generator


class OneForAll(LevelAssignment):
    """Gives all clients of a round the same level: a constant one, or one that is drawn in every round.

    UP-FL prunes the models of all workers by one ratio per round. The paper's rule for the ratio is not known here.

    Args:
        level: the level; null: drawn in every round, all levels equally likely.
    """

    def __init__(self, level: str | None = None) -> None:
        self.level_of_all = level

    def foresee(self, outlook: Outlook) -> None:
        """Set the level.

        Raises:
            ConfigurationError: there is no such level.
        """
        super().foresee(outlook)
        self._constant = None if self.level_of_all is None else outlook.position(self.level_of_all, "level")

    def draw(self, round: int) -> IntArray:  # noqa: D102
        position = self._constant
        if position is None:
            random = generator(self.seed, "levels", round)
            position = int(torch.randint(len(self.names), (1,), generator=random))
        return np.full(self.num_clients, position, np.int64)

    def settings(self) -> dict[str, object]:
        """Return the level."""
        return {"level": self.level_of_all}
