"""Level assignments: the level of each client in each round (HeteroFL, section 4, "fix" and "dynamic")."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.numbers import FloatArray, IntArray
from hetfl.fleet.outlook import Outlook
from hetfl.piece import Facts, Piece
from hetfl.seeding import generator


class LevelAssignment(Piece):
    """Gives every client a level in every round: a function of the seed, the round and the fleet.

    :class:`~hetfl.fleet.LearningAssignment` is the base class of assignments that also learn from reports.
    """

    replayable: ClassVar[bool] = True
    """Whether levels are a function of only the seed, the round and the fleet, so that any round can be replayed."""

    def setup(self, facts: Facts) -> None:
        """Set the names of the levels, the number of clients and the seed.

        Raises:
            ConfigurationError: the assignment's settings do not fit these levels or clients.
        """
        self.names, self.num_clients, self.seed = tuple(facts.levels), facts.num_clients, facts.seed
        self._last: tuple[int, IntArray] | None = None  # the last round asked for, and its levels

    def foresee(self, outlook: Outlook) -> None:
        """Set what is known of levels and devices before the first round; by default, :meth:`meet` gets the seconds.

        Raises:
            ConfigurationError: the assignment's settings do not fit these levels or devices.
        """
        self.meet(outlook.seconds_LN)

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return tables for the run's folder: by name, columns and rows. By default there are none."""
        return {}

    def meet(self, seconds_LN: FloatArray) -> None:
        """Set the predicted seconds of a round of each client at each level; by default they are not used.

        Args:
            seconds_LN: shape (L, N), every client at its usual speed, with dense updates.
        """

    @abstractmethod
    def draw(self, round: int) -> IntArray:
        """Return the level of every client in a round: int64 positions in ``names``, shape (N,)."""

    def positions(self, round: int) -> IntArray:
        """Return the level of every client in a round, as positions in ``names``, shape (N,)."""
        if self._last is None or self._last[0] != round:
            self._last = (round, self.draw(round))
        return self._last[1]

    def level(self, client: int, round: int) -> str:
        """Return the level of one client in a round."""
        return self.names[int(self.positions(round)[client])]

    def levels(self, round: int) -> list[str]:
        """Return the level of every client in a round, by client id."""
        return [self.names[position] for position in self.positions(round).tolist()]


class Proportional(LevelAssignment):
    """Base class of assignments with fixed proportions of levels.

    Args:
        proportions: per level name a positive whole number, as in the paper's ``a2-b8``; None: 1 for each level.
    """

    def __init__(self, proportions: Mapping[str, int] | None = None) -> None:
        self.proportions = proportions

    def setup(self, facts: Facts) -> None:
        """Set the names of the levels, the number of clients and the seed.

        Raises:
            ConfigurationError: a proportion belongs to no level or is not positive, or there are no proportions.
        """
        super().setup(facts)
        proportions = dict.fromkeys(self.names, 1) if self.proportions is None else self.proportions
        for name, share in proportions.items():
            if name not in self.names:
                raise ConfigurationError(
                    f"Expected levels in the proportions among {list(self.names)} but got {name!r}"
                )
            if share < 1:
                raise ConfigurationError(f"Expected a positive proportion for level {name} but got {share}")
        if not proportions:
            raise ConfigurationError("Expected at least one level in the proportions but got none")
        self.given = np.array([self.names.index(name) for name in proportions])
        self.shares = list(proportions.values())


class Fixed(Proportional):
    """Gives each level a contiguous block of client ids, for the whole run; remaining clients get the last level.

    A level's block has ``(N div sum of proportions) * proportion`` clients.
    """

    def draw(self, round: int) -> IntArray:  # noqa: D102
        blocks = self.given.repeat([self.num_clients // sum(self.shares) * share for share in self.shares])
        return np.concatenate([blocks, np.full(self.num_clients - len(blocks), self.given[-1])])

    def setup(self, facts: Facts) -> None:
        """Set the names of the levels, the number of clients and the seed.

        Raises:
            ConfigurationError: an error of the base class, or fewer clients than the sum of the proportions, so that
                blocks would be empty.
        """
        super().setup(facts)
        if self.num_clients < sum(self.shares):
            raise ConfigurationError(
                f"Expected at least {sum(self.shares)} clients, the sum of the proportions, but got {self.num_clients}"
            )


class Dynamic(Proportional):
    """Draws every client's level anew in every round, independently, with probabilities given by the proportions."""

    def draw(self, round: int) -> IntArray:  # noqa: D102
        shares = torch.tensor(self.shares, dtype=torch.float64)
        draws = torch.multinomial(
            shares, self.num_clients, replacement=True, generator=generator(self.seed, "levels", round)
        )
        positions: IntArray = self.given[draws.numpy()]
        return positions
