"""Rounds of one cohort."""

from __future__ import annotations

from typing import ClassVar

from hetfl.schedule.base import Schedule, Turn


class Synchronous(Schedule):
    """The server waits for every client of the cohort, until the deadline if there is one, and then steps."""

    in_step: ClassVar[bool] = True

    def run(self, turn: Turn) -> None:  # noqa: D102
        tasks = turn.ask(turn.round)
        turn.expected = len(tasks)
        for flight in turn.depart(tasks):
            turn.land(flight)
