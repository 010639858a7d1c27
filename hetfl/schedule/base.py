"""The base class of schedules, which decide what updates the server sees before it steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from hetfl.accounting import Ledger
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import IntArray
from hetfl.piece import Piece
from hetfl.schedule.age import FRESH, Age
from hetfl.schedule.flight import Flight, Parts
from hetfl.types import Report, Task

Row = tuple[object, ...]
"""A row of a run's ``timeline.csv``."""


class OpenRound(Protocol):
    """What a schedule can do in a round.

    Attributes:
        round: the round's number.
        ledger: the costs, and the simulated clock.
        expected: number of clients that will report in the round, for the display.
        elsewhere: whether clients work elsewhere, in real time: then :meth:`send` and :meth:`arrived` take the place
            of :meth:`dispatch`.
    """

    round: int
    ledger: Ledger
    expected: int
    elsewhere: bool

    def choose(self, draw: int, clients: IntArray | None = None, most: int | None = None) -> list[Task]:
        """Have the policies choose clients, and return their tasks.

        Args:
            draw: number of the choice, from which it is drawn.
            clients: ids of those who can be chosen, ascending; None: the clock waits until a client is within reach.
            most: the largest number of clients that are chosen.
        """
        ...

    def dispatch(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients take the model and train; first come the clients that are lost."""
        ...

    def send(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients take the model and begin to train elsewhere; their flights have no end yet."""
        ...

    def arrived(self, flights: Sequence[Flight]) -> Iterator[Flight]:
        """Wait shortly for clients that work elsewhere; yield those of their flights that have ended."""
        ...

    def receive(self, flight: Flight, age: Age = FRESH) -> Report | None:
        """Have the server receive an update; return the completed report if it was accepted."""
        ...


class Schedule(Piece):
    """Decides when clients take the model, when their updates arrive, and when the server steps."""

    in_step: ClassVar[bool] = False
    """Whether all clients of a round take the model of this round, and the server waits for them."""

    def meet(self, parts: Parts) -> None:
        """Set the global models, and what makes tasks whole."""
        self.parts = parts

    def ledger(self, fleet: Fleet, deadline: float | None) -> Ledger:
        """Return the ledger of a run: the costs, and the simulated clock.

        Args:
            fleet: the clients' devices.
            deadline: seconds after a client takes the model until which its update is accepted; None: no deadline.
        """
        return Ledger(fleet, deadline)

    @abstractmethod
    def run(self, current: OpenRound) -> None:
        """Have clients train, and the server receive their updates, until the server's step is due."""

    def stepped(self, holders: Mapping[str, Tensor]) -> None:
        """Note a server step.

        Args:
            holders: by name of a global tensor, the number or weight of the holders of each entry; empty: nothing
                changed.
        """

    def check(self, pieces: Mapping[str, Piece]) -> None:
        """Refuse pieces of a run that the schedule does not work with.

        Args:
            pieces: by name.

        Raises:
            ConfigurationError: names the first one.
        """

    def rows(self) -> list[Row]:
        """Return the rows of ``timeline.csv`` for the round that has ended."""
        return []
