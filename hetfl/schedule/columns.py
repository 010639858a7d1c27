"""The arrivals of a round: columns of ``metrics.csv`` and rows of ``timeline.csv``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hetfl.schedule.age import Age
from hetfl.schedule.base import Row
from hetfl.schedule.flight import Flight


class Arrivals:
    """What has arrived in a round."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._means: defaultdict[str, list[float]] = defaultdict(list)  # by level, the staleness of accepted updates
        self._most = 0

    @property
    def accepted(self) -> int:
        """Number of accepted updates."""
        return sum(map(len, self._means.values()))

    def add(self, round: int, flight: Flight, age: Age, accepted: bool) -> None:
        """Note an arrival, or a client that was lost.

        Args:
            round: the round in which it arrives.
            flight: the client's work.
            age: of the model that it took.
            accepted: whether the server accepted its update.
        """
        task = flight.task
        if accepted:
            self._means[task.level].append(age.mean)
            self._most = max(self._most, age.most)
        known = (repr(age.mean), age.most) if accepted else ("", "")
        work = (task.client, task.level, task.round, repr(flight.start), repr(flight.end))
        self.rows.append((round, *work, *known, int(accepted)))

    def columns(self, levels: Sequence[str]) -> dict[str, float]:
        """Return the columns: means over accepted updates of the mean staleness of an update's entries.

        Args:
            levels: names of the levels, each of which has a column with the number of its updates.
        """
        columns = {"schedule/updates": float(self.accepted)}
        columns |= {f"schedule/updates_by_level/{level}": float(len(self._means[level])) for level in levels}
        if self.accepted:
            everything = [mean for means in self._means.values() for mean in means]
            columns["schedule/staleness_mean"] = sum(everything) / len(everything)
            columns["schedule/staleness_max"] = float(self._most)
        for level in levels:
            if means := self._means[level]:
                columns[f"schedule/staleness_by_level/{level}"] = sum(means) / len(means)
        return columns
