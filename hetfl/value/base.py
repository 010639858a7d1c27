"""The base class of measures of what a client's update is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from hetfl.piece import Piece


class Value(Piece):
    """Measures the value of each client's update; it may learn from updates and reports as any piece does."""

    @abstractmethod
    def of_round(self) -> Mapping[int, float]:
        """Return the values of the round's clients by id: finite numbers, the larger the better.

        It is called after all updates of the round were observed, and before :meth:`end_round`. A client without a
        value has no entry.
        """
