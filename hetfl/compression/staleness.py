"""What becomes of a residual whose client stays away."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hetfl.errors import ConfigurationError
from hetfl.piece import described, settings_of


class Staleness(ABC):
    """How much of a residual is used, given its age.

    A client that is rarely selected returns with a residual from a model long gone; with few participants of many, this
    slows error feedback down (Li and Li, ICML 2023, arXiv 2211.14292).
    """

    @abstractmethod
    def factor(self, age: int) -> float:
        """Return what the residual is multiplied by before it is added to the delta, in [0, 1].

        Args:
            age: rounds since the server last took an update of the client, at least 1.
        """

    def describe(self) -> str:
        """Return the policy with its settings in short text, by which a checkpoint knows it again."""
        return described(type(self).__name__, settings_of(self))


class Keep(Staleness):
    """Residuals never age: error feedback as it was published."""

    def factor(self, age: int) -> float:  # noqa: D102
        return 1.0


class Decay(Staleness):
    """A residual loses a share with every round that its client misses: factor rate^(age − 1).

    Args:
        rate: what is left after a missed round, in [0, 1].

    Raises:
        ConfigurationError: ``rate`` is out of range.
    """

    def __init__(self, rate: float = 0.9) -> None:
        if not 0 <= rate <= 1:
            raise ConfigurationError(f"Expected rate in [0, 1] but got {rate}")
        self.rate = rate

    def factor(self, age: int) -> float:  # noqa: D102
        return float(self.rate ** (age - 1))


class DropAfter(Staleness):
    """A residual older than a number of rounds is dropped.

    Args:
        rounds: the oldest that is used, at least 1.

    Raises:
        ConfigurationError: ``rounds`` is below 1.
    """

    def __init__(self, rounds: int = 10) -> None:
        if rounds < 1:
            raise ConfigurationError(f"Expected rounds of at least 1 but got {rounds}")
        self.rounds = rounds

    def factor(self, age: int) -> float:  # noqa: D102
        return 1.0 if age <= self.rounds else 0.0
