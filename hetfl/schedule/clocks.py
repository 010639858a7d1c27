"""Clocks of schedules in which clients do not wait for each other: simulated, or real."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hetfl.schedule.base import OpenRound
from hetfl.schedule.flight import Flight
from hetfl.schedule.timed_ledger import TimedLedger
from hetfl.types import Task


class Clock(ABC):
    """Says when flights begin and end, in seconds since the beginning of the run."""

    @abstractmethod
    def begun(self, current: OpenRound, ledger: TimedLedger, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients take the model, and yield their flights."""

    @abstractmethod
    def ended(
        self, current: OpenRound, ledger: TimedLedger, flights: Sequence[Flight], until: float
    ) -> list[Flight] | None:
        """Let time pass until a flight ends, or until a time; return the flights that have ended.

        Args:
            current: the round.
            ledger: gets the new time.
            flights: those under way.
            until: the time at which to return in any case.

        Returns:
            The flights in their order; None if nothing can happen any more.
        """


class SimulatedClock(Clock):
    """A flight takes as long as the client's device needs; the update is computed at its beginning."""

    def begun(  # noqa: D102
        self, current: OpenRound, ledger: TimedLedger, tasks: Sequence[Task]
    ) -> Iterator[Flight]:
        for flight in current.dispatch(tasks):
            seconds = ledger.seconds(flight.task.client, flight.task.round, flight.work)
            if ledger.deadline is not None:
                seconds = min(seconds, ledger.deadline)
            yield replace(flight, start=ledger.now, end=ledger.now + seconds)

    def ended(  # noqa: D102
        self, current: OpenRound, ledger: TimedLedger, flights: Sequence[Flight], until: float
    ) -> list[Flight] | None:
        next_time = min((flight.end for flight in flights), default=math.inf)
        next_time = min(next_time, until)
        if next_time == math.inf:
            return None
        ledger.pass_until(next_time, idle=not flights)
        return [flight for flight in flights if flight.end <= next_time]


class RealClock(Clock):
    """A flight ends when the client's answer arrives; the simulated clock shows the real time of the run.

    Args:
        seconds: returns monotonic seconds.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._zero = seconds, math.nan

    def _now(self, ledger: TimedLedger) -> float:
        """Return the seconds since the beginning of the run, without those in which it was interrupted."""
        if math.isnan(self._zero):
            self._zero = self._seconds() - ledger.now
        return self._seconds() - self._zero

    def begun(  # noqa: D102
        self, current: OpenRound, ledger: TimedLedger, tasks: Sequence[Task]
    ) -> Iterator[Flight]:
        for flight in current.send(tasks):
            now = self._now(ledger)
            yield replace(flight, start=now, end=max(now, flight.end))

    def ended(  # noqa: D102
        self, current: OpenRound, ledger: TimedLedger, flights: Sequence[Flight], until: float
    ) -> list[Flight] | None:
        if not flights:
            return None
        waiting = [flight for flight in flights if flight.end == math.inf]
        ended = [flight for flight in flights if flight.end < math.inf]  # lost at the beginning
        while not ended and (now := self._now(ledger)) < until:
            ended = [replace(flight, end=now) for flight in current.arrived(waiting)]
        ledger.pass_until(self._now(ledger))
        return ended
