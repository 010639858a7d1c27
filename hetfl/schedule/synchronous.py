"""Rounds of one cohort."""

from __future__ import annotations

from typing import ClassVar

from hetfl.schedule.base import OpenRound, Schedule


class Synchronous(Schedule):
    """The server waits for every client of the cohort, until the deadline if there is one, and then steps."""

    in_step: ClassVar[bool] = True

    def run(self, current: OpenRound) -> None:  # noqa: D102
        tasks = current.choose(current.round)
        current.expected = len(tasks)
        for flight in current.dispatch(tasks):
            current.receive(flight)
