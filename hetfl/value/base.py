"""The base class of measures of what a client's update is worth, and the measures of a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from hetfl.errors import ConfigurationError
from hetfl.piece import Piece, unused

LARGEST = 1e300
"""Bound of the absolute value of a client, so that sums over clients are finite."""


class Value(Piece):
    """Measures the value of each client's update; it may learn from updates and reports as any piece does."""

    @abstractmethod
    def of_round(self) -> Mapping[int, float]:
        """Return the values of the round's clients by id: finite numbers, the larger the better.

        It is called after all updates of the round were observed, and before :meth:`end_round`. A client without a
        value has no entry.
        """

    def client_values(self) -> dict[str, Mapping[int, float]]:
        """Return :meth:`of_round` under the name of the class."""
        return {type(self).__name__: self.of_round()}


class Measures(Piece):
    """Measures that only write their values into ``values.csv``; nothing in the run depends on them.

    Each is a piece of the run with the name ``measures.<class>``; further measures of the same class get ``_2``, ``_3``
    and so on.

    Args:
        measures: the measures.

    Raises:
        ConfigurationError: a measure is given twice.
    """

    def __init__(self, measures: Iterable[Value] = ()) -> None:
        self.named: dict[str, Value] = {}
        for value in measures:
            if any(value is other for other in self.named.values()):
                raise ConfigurationError(f"Expected every measure once but got one {type(value).__name__} twice")
            self.named[unused(type(value).__name__, self.named)] = value

    def members(self) -> dict[str, Piece]:  # noqa: D102
        return dict(self.named)

    def describe(self) -> str:  # noqa: D102
        return ", ".join(self.named)


def finite(values: Mapping[int, float], source: str, round: int) -> dict[int, float]:
    """Return values after a check.

    Args:
        values: by client.
        source: what measures them, for the message.
        round: the round, for the message.

    Raises:
        ConfigurationError: a value is not finite, or its absolute value is 1e300 or more.
    """
    for client, value in values.items():
        if not -LARGEST < value < LARGEST:
            raise ConfigurationError(
                f"Expected finite values from {source} but got {value} of client {client} in round {round + 1}"
            )
    return dict(values)


def values_of_round(pieces: Sequence[Piece], round: int) -> dict[str, Mapping[int, float]]:
    """Return the values of a round by measure and client; measures of one name get ``_2``, ``_3`` and so on.

    Args:
        pieces: all pieces of the run.
        round: the round.

    Raises:
        ConfigurationError: a value is not finite.
    """
    values: dict[str, Mapping[int, float]] = {}
    for piece in pieces:
        for measure, of_clients in piece.client_values().items():
            values[unused(measure, values)] = finite(of_clients, measure, round)
    return values
