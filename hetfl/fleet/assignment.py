"""Which client has which level in which round (HeteroFL, section 4, "fix" and "dynamic")."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.numbers import FloatArray, IntArray
from hetfl.piece import Facts, Piece
from hetfl.seeding import generator


class LevelAssignment(Piece):
    """Gives every client a level in every round: a function of the seed, the round and the fleet."""

    def setup(self, facts: Facts) -> None:
        """Learn the names of the levels and the size of the fleet.

        Raises:
            ConfigurationError: it does not go with these levels and clients.
        """
        self.names, self.num_clients, self.seed = tuple(facts.levels), facts.num_clients, facts.seed
        self._last: tuple[int, IntArray] | None = None  # of the round asked for last

    def meet(self, seconds_LN: FloatArray) -> None:
        """Learn how long a round takes each client at each level, in seconds; by default it does not matter.

        Args:
            seconds_LN: shape (L, N), every client as fast as usual, everything sent.
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
    """Gives out levels in proportions.

    Args:
        proportions: per level name a positive whole number, as in the paper's ``a2-b8``; None: the same for all levels.
    """

    def __init__(self, proportions: Mapping[str, int] | None = None) -> None:
        self.proportions = proportions

    def setup(self, facts: Facts) -> None:
        """Learn the names of the levels and the size of the fleet.

        Raises:
            ConfigurationError: a proportion belongs to no level or is not positive.
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
    """Levels in contiguous blocks of client ids, for the whole run; left-over clients get the last level.

    A block has ``(N div sum of proportions) * proportion`` clients.
    """

    def draw(self, round: int) -> IntArray:  # noqa: D102
        blocks = self.given.repeat([self.num_clients // sum(self.shares) * share for share in self.shares])
        return np.concatenate([blocks, np.full(self.num_clients - len(blocks), self.given[-1])])

    def setup(self, facts: Facts) -> None:
        """Learn the names of the levels and the size of the fleet.

        Raises:
            ConfigurationError: also if there are fewer clients than the proportions' sum: blocks would be empty.
        """
        super().setup(facts)
        if self.num_clients < sum(self.shares):
            raise ConfigurationError(
                f"Expected at least {sum(self.shares)} clients, the sum of the proportions, but got {self.num_clients}"
            )


class Dynamic(Proportional):
    """All levels are redrawn at every round, independently, with probabilities given by the proportions."""

    def draw(self, round: int) -> IntArray:  # noqa: D102
        shares = torch.tensor(self.shares, dtype=torch.float64)
        draws = torch.multinomial(
            shares, self.num_clients, replacement=True, generator=generator(self.seed, "levels", round)
        )
        found: IntArray = self.given[draws.numpy()]
        return found
