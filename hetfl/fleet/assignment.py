"""Which client has which level in which round (HeteroFL, section 4, "fix" and "dynamic")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


class LevelAssignment(ABC):
    """Gives every client a level in every round.

    Args:
        proportions: per level name a positive whole number, as in the paper's ``a2-b8``; None: the same for all levels.
    """

    def __init__(self, proportions: Mapping[str, int] | None = None) -> None:
        self.proportions = proportions

    def setup(self, levels: Sequence[str], num_clients: int, seed: int) -> None:
        """Learn the names of the levels and the size of the fleet.

        Raises:
            ConfigurationError: a proportion belongs to no level or is not positive.
        """
        self.num_clients, self.seed = num_clients, seed
        proportions = dict.fromkeys(levels, 1) if self.proportions is None else self.proportions
        for name, share in proportions.items():
            if name not in levels:
                raise ConfigurationError(f"Expected levels in the proportions among {list(levels)} but got {name!r}")
            if share < 1:
                raise ConfigurationError(f"Expected a positive proportion for level {name} but got {share}")
        if not proportions:
            raise ConfigurationError("Expected at least one level in the proportions but got none")
        self.names, self.shares = list(proportions), list(proportions.values())

    @abstractmethod
    def levels(self, round: int) -> list[str]:
        """Return the level of every client in a round, by client id."""


class Fixed(LevelAssignment):
    """Levels in contiguous blocks of client ids, for the whole run; left-over clients get the last level.

    A block has ``(N div sum of proportions) * proportion`` clients.
    """

    def levels(self, round: int) -> list[str]:  # noqa: D102
        unit = self.num_clients // sum(self.shares)
        blocks = [name for name, share in zip(self.names, self.shares, strict=True) for _ in range(unit * share)]
        return blocks + [self.names[-1]] * (self.num_clients - len(blocks))

    def setup(self, levels: Sequence[str], num_clients: int, seed: int) -> None:
        """Learn the names of the levels and the size of the fleet.

        Raises:
            ConfigurationError: also if there are fewer clients than the proportions' sum: blocks would be empty.
        """
        super().setup(levels, num_clients, seed)
        if num_clients < sum(self.shares):
            raise ConfigurationError(
                f"Expected at least {sum(self.shares)} clients, the sum of the proportions, but got {num_clients}"
            )


class Dynamic(LevelAssignment):
    """All levels are redrawn at every round, independently, with probabilities given by the proportions."""

    def levels(self, round: int) -> list[str]:  # noqa: D102
        shares = torch.tensor(self.shares, dtype=torch.float64)
        draws = torch.multinomial(
            shares, self.num_clients, replacement=True, generator=generator(self.seed, "levels", round)
        )
        return [self.names[i] for i in draws.tolist()]
