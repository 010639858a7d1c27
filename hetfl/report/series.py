"""The headline over costs: the last value at or before a budget, means over seeds, and the cost of a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetfl.analysis import Run
from hetfl.display.formats import format_quantity, format_seconds
from hetfl.report.groups import Group
from hetfl.report.spread import bands

Numbers = NDArray[np.float64]

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
    column = column_of(run, part)
    if column not in run.metrics.columns:
        return np.empty(0), np.empty(0)
    spent, score = amounts(run, cost), np.asarray(run.series(column), dtype=np.float64)
    reported = ~(np.isnan(spent) | np.isnan(score))
    return spent[reported], score[reported]


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
    """A score over a cost: mean and spread over seeds.

    Attributes:
        x: cumulative cost, ascending.
        mean: mean score, in the unit of ``metrics.csv``.
        low: lower end of the spread.
        high: upper end of the spread.
        n: number of seeds.
    """

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    n: int


def band(runs: Sequence[Run], part: str, cost: Cost) -> Band | None:
    """Return the mean curve of several seeds over the common range of costs; None if a seed has no score.

    The points are all amounts at which a seed has a score. The value of a seed at a point is its last score at or
    before the point.
    """
    curves = [curve(run, part, cost) for run in runs]
    if any(not len(spent) for spent, _ in curves):
        return None
    first, last = max(spent[0] for spent, _ in curves), min(spent[-1] for spent, _ in curves)
    points = np.unique(np.concatenate([spent for spent, _ in curves]))
    points = points[(points >= first) & (points <= last)]
    if not len(points):
        return None
    mean, low, high = bands(np.stack([values_at(spent, score, points) for spent, score in curves]))
    return Band(points, mean, low, high, len(runs))


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
    """Return the mean over the runs of a group of the best validation headline of the global model."""
    return float(np.mean([run.headline.best(run.series(column_of(run, GLOBAL))) for run in group.runs]))


def last_validated(groups: Sequence[Group]) -> int | None:
    """Return the last round, from 0, in which all runs have a validation headline; None if there is none."""
    reported = [set(curve(run, GLOBAL, ROUNDS)[0]) for group in groups for run in group.runs]
    common = set.intersection(*reported)
    return int(max(common)) - 1 if common else None


def value_after(run: Run, column: str, step: float | None = None) -> float | None:
    """Return the value of a column in one round; None if the cell is empty.

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
