"""The headline over costs: the last value at or before a budget, means over seeds, and the cost of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hetfl.analysis import Run
from hetfl.display.formats import format_quantity, format_seconds
from hetfl.report.groups import Group, seed_of
from hetfl.report.spread import bands

Numbers = NDArray[np.float64]

DENSITY = "comm/up_density"
"""The column of ``metrics.csv`` with the share of entries that were sent."""
GLOBAL = "global"
"""Name of the global model among the names of levels and heads."""


@dataclass(frozen=True)
class Cost:
    """A cost of a run.

    Attributes:
        key: part of file names and of column names in ``summary.csv``.
        column: the column of ``metrics.csv`` with the cumulative cost.
        name: the name in texts, as in "at the same ...".
        axis: the label of an axis, with the unit.
        scale: amount of one unit of the axis.
        write: converts an amount to text.
    """

    key: str
    column: str
    name: str
    axis: str
    scale: float
    write: Callable[[float], str]


ROUNDS = Cost("rounds", "step", "rounds", "Rounds done", 1.0, lambda value: f"{value:.0f}")
BYTES = Cost(
    "bytes",
    "comm/up_bytes_total",
    "uploaded bytes",
    "Uploaded by all clients (MB)",
    1e6,
    lambda value: format_quantity(value, "B"),
)
FLOPS = Cost(
    "flops",
    "compute/flops_total",
    "computed FLOPs",
    "Computed by all clients (GFLOP)",
    1e9,
    lambda value: format_quantity(value, "FLOP"),
)
SECONDS = Cost("seconds", "sim/seconds_total", "simulated seconds", "Simulated time (s)", 1.0, format_seconds)
COSTS = (ROUNDS, BYTES, FLOPS, SECONDS)


def amounts(run: Run, cost: Cost) -> Numbers:
    """Return the cumulative cost at the end of the round of each row; all NaN if the run has no such column."""
    if cost.column not in run.metrics.columns:
        return np.full(len(run.metrics), np.nan)
    spent = np.asarray(run.series(cost.column), dtype=np.float64)
    return spent + 1 if cost is ROUNDS else spent  # round 0 is the first


def column_of(run: Run, part: str, stage: str = "val") -> str:
    """Return the column of the headline of a level, a head or the global model."""
    return run.headline.column(stage, "" if part == GLOBAL else part)


def curve(run: Run, part: str, cost: Cost) -> tuple[Numbers, Numbers]:
    """Return the cumulative cost and the validation headline of the rounds that have both."""
    return column_over(run, column_of(run, part), cost)


def column_over(run: Run, column: str, cost: Cost) -> tuple[Numbers, Numbers]:
    """Return the cumulative cost and the value of a column of the rounds that have both, and where both are finite."""
    if column not in run.metrics.columns:
        return np.empty(0), np.empty(0)
    spent, value = amounts(run, cost), np.asarray(run.series(column), dtype=np.float64)
    reported = np.isfinite(spent) & np.isfinite(value)
    return spent[reported], value[reported]


def values_at(spent: Numbers, score: Numbers, budgets: Numbers) -> Numbers:
    """Return the last score at or before each budget, without interpolation; NaN before the first score.

    >>> values_at(np.array([1.0, 3.0]), np.array([0.5, 0.75]), np.array([0.0, 1.0, 2.5, 3.0, 9.0])).tolist()
    [nan, 0.5, 0.5, 0.75, 0.75]
    """
    places = np.searchsorted(spent, budgets, side="right")
    return np.concatenate([[np.nan], score])[places]


def spends(group: Group, cost: Cost) -> bool:
    """Return whether all runs of a group have a cost that is not always 0."""
    return all(bool((curve(run, GLOBAL, cost)[0] > 0).any()) for run in group.runs)


@dataclass(frozen=True)
class Band:
    """A score over a cost: mean and spread over seeds, and the curve of each seed.

    Attributes:
        x: cumulative cost, ascending, where all seeds have a score; may be empty.
        mean: mean score, in the unit of ``metrics.csv``.
        low: lower end of the spread.
        high: upper end of the spread.
        n: number of seeds.
        seeds: by seed its own costs and scores, up to its own end; empty where only the mean is of interest.
    """

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    n: int
    seeds: Mapping[str, tuple[Numbers, Numbers]] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """The smallest cost of the mean and of all seeds."""
        return min(float(x[0]) for x in self._all() if len(x))

    @property
    def end(self) -> float:
        """The largest cost of the mean and of all seeds."""
        return max(float(x[-1]) for x in self._all() if len(x))

    def _all(self) -> list[Numbers]:
        return [self.x, *(x for x, _ in self.seeds.values())]


def band(runs: Sequence[Run], part: str, cost: Cost) -> Band | None:
    """Return the scores of several seeds over a cost; see :func:`band_of`."""
    curves = [curve(run, part, cost) for run in runs]
    return band_of(dict(zip(names_of(runs), curves, strict=True)))


def band_of(curves: Mapping[str, tuple[Numbers, Numbers]]) -> Band | None:
    """Return the curves of several seeds, and their mean over the common range of costs; None if a seed has no score.

    The points of the mean are all amounts at which a seed has a score. The value of a seed at a point is its last score
    at or before the point.

    Args:
        curves: cumulative costs and scores by seed.
    """
    ends = [spent for spent, _ in curves.values()]
    if any(not len(spent) for spent in ends):
        return None
    first, last = max(spent[0] for spent in ends), min(spent[-1] for spent in ends)
    points = np.unique(np.concatenate(ends))
    points = points[(points >= first) & (points <= last)]
    mean, low, high = bands(np.stack([values_at(spent, score, points) for spent, score in curves.values()]))
    return Band(points, mean, low, high, len(curves), dict(curves) if len(curves) > 1 else {})


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return the seeds of runs, or their numbers if seeds are unknown or occur twice."""
    seeds = [seed_of(run) for run in runs]
    return seeds if len(set(seeds)) == len(seeds) else [str(number + 1) for number in range(len(runs))]


def seeds_of(group: Group) -> list[str]:
    """Return the names of the thin lines of a group; none for a single run."""
    return names_of(group.runs) if len(group.runs) > 1 else []


def common_budget(groups: Sequence[Group], cost: Cost) -> float:
    """Return the largest amount that every run has spent by its last round with a score."""
    return float(min(curve(run, GLOBAL, cost)[0][-1] for group in groups for run in group.runs))


def score_at(run: Run, part: str, cost: Cost, budget: float) -> float | None:
    """Return the last validation headline at or before a budget; None if there is none."""
    value = float(values_at(*curve(run, part, cost), np.array([budget]))[0])
    return None if np.isnan(value) else value


def amount_to_reach(run: Run, target: float, cost: Cost) -> float | None:
    """Return the cost of a run until its global model first reached a validation headline; None if it never did."""
    spent, score = curve(run, GLOBAL, cost)
    reached = np.flatnonzero(score >= target if run.headline.higher_is_better else score <= target)
    return float(spent[reached[0]]) if len(reached) else None


def best_score(group: Group) -> float:
    """Return the mean over the runs of a group of the best finite validation headline of the global model."""
    return float(np.mean([run.headline.best(curve(run, GLOBAL, ROUNDS)[1]) for run in group.runs]))


def last_validated(groups: Sequence[Group]) -> int | None:
    """Return the last round, from 0, in which all runs were validated; None if there is none."""
    common = set.intersection(*(rounds_of(run, column_of(run, GLOBAL)) for group in groups for run in group.runs))
    return max(common, default=None)


def rounds_of(run: Run, column: str) -> set[int]:
    """Return the rounds, from 0, that have a value of a column; ``nan`` is a value."""
    if column not in run.metrics.columns:
        return set()
    known = run.series("step")[run.series(column).notna()]
    return {*known.astype(int), *run.nan_rounds.get(column, ())}


def value_after(run: Run, column: str, step: float | None = None) -> float | None:
    """Return the value of a column in one round; None if the cell is empty or ``nan``.

    Args:
        run: the run.
        column: name of the column of ``metrics.csv``.
        step: the round, from 0; None: the last round. Values of earlier rounds belong to an older model.
    """
    if column not in run.metrics.columns:
        return None
    steps = run.series("step")
    known = run.series(column)[steps == (steps.max() if step is None else step)].dropna()
    return float(known.iloc[0]) if len(known) else None


def final_amount(run: Run, column: str) -> float | None:
    """Return the last number of a column; None if there is none."""
    if column not in run.metrics.columns:
        return None
    known = run.series(column).dropna()
    return float(known.iloc[-1]) if len(known) else None
