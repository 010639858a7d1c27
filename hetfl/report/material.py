"""The input of a report: the groups, and the decisions about their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
import pandas as pd

from hetfl.analysis import Run
from hetfl.display.formats import format_quantity
from hetfl.errors import ConfigurationError
from hetfl.report.checks import rounds_done
from hetfl.report.groups import Group
from hetfl.report.matching import LevelRow, level_sizes, rows_by_cost, rows_by_name
from hetfl.report.rounding import RoundedHeadline, rounded
from hetfl.report.series import (
    GLOBAL,
    Cost,
    best_score,
    column_of,
    last_validated,
    rounds_of,
    spends,
    value_after,
)
from hetfl.report.spread import Spread, span, spread_of
from hetfl.runs.headline import Headline

UNITS = {"parameters": (" parameters", " param."), "training_flops": (" a sample", "")}
"""Units of the size of a level, by column: in a sentence, and in a figure."""

PART_OF_BEST = 0.95
"""The default target is this fraction of the best score of the group whose best score is worst."""


@dataclass(frozen=True)
class Material:
    """The groups of a report, and the decisions about their comparison.

    Attributes:
        groups: the groups.
        rows: levels that are compared with each other.
        matched_by: the column of ``levels.csv`` by which levels are matched; None: by their names.
        stage: source of the final scores: ``test``, or ``val`` if a run was not tested.
        validated: the last round, from 0, that all runs validated; None without such a round.
        own_global: whether the score of the global model differs from that of the first level.
        target: the validation headline for which costs are reported.
        part_of_best: the target divided by the best score of the group whose best score is worst; None: the user gave
            the target.
        missing: sentences on runs that were planned and are not in the report.
    """

    groups: Sequence[Group]
    rows: Sequence[LevelRow]
    matched_by: str | None
    stage: str
    validated: int | None
    own_global: bool
    target: float
    part_of_best: float | None
    missing: Sequence[str] = ()

    @cached_property
    def headline(self) -> RoundedHeadline:
        """The score by which models are compared, with the decimals that the number of samples supports."""
        return rounded(self.groups[0].headline, [run for group in self.groups for run in group.runs])

    @property
    def chance(self) -> float | None:
        """The score of guessing; None if it is unknown or not the same for all runs."""
        known = {run.chance for group in self.groups for run in group.runs}
        return known.pop() if len(known) == 1 else None

    @property
    def parts(self) -> list[str]:
        """Names of the levels in order, and of the global model if it is not one of them."""
        return [row.name for row in rows_by_name(self.groups)] + [GLOBAL] * self.own_global

    def spending(self, cost: Cost) -> list[Group]:
        """Return the groups whose runs have a cost."""
        return [group for group in self.groups if spends(group, cost)]

    def size_of(self, row: LevelRow, *, short: bool) -> str:
        """Return the sizes of the levels of a row as text, such as ``187–201 k parameters``; empty if unknown."""
        if self.matched_by is None:
            return ""
        known = {group.name: level_sizes(group) or {} for group in self.groups}
        sizes = [known[group][level][self.matched_by] for group, level in row.levels.items()]
        # format_quantity puts its prefix before the unit: MFLOP, but 1.2 M parameters.
        unit = "FLOP" if self.matched_by == "training_flops" else ""
        low, high = (format_quantity(size, unit).strip() for size in (min(sizes), max(sizes)))
        return span(low, high) + UNITS[self.matched_by][short]

    @property
    def after_last(self) -> bool:
        """Whether every run is evaluated after its last round."""
        runs = [run for group in self.groups for run in group.runs]
        return self.stage == "test" or all(rounds_done(run) - 1 == self.validated for run in runs)

    @property
    def when(self) -> str:
        """The round after which groups are compared, in words."""
        if self.after_last:
            return "after the last round"
        return "after a round that all validated" if self.validated is None else f"after round {self.validated + 1}"

    def value(self, run: Run, column: str) -> float | None:
        """Return the value of a column of a run after the round in which groups are compared."""
        round = self.round_of(run)
        return None if round is None else value_after(run, column, round)

    def round_of(self, run: Run) -> int | None:
        """Return the round, from 0, after which a run is compared; None without such a round."""
        return rounds_done(run) - 1 if self.stage == "test" else self.validated

    def clients_of(self, run: Run) -> pd.DataFrame | None:
        """Return ``clients.csv`` of a run, whose scores are of its last round; None if another round is compared."""
        return run.clients if self.round_of(run) == rounds_done(run) - 1 else None

    def final(self, group: Group, part: str) -> Spread | None:
        """Return the headline of a level or the global model after the round in which groups are compared."""
        return spread_of([self.value(run, column_of(run, part, self.stage)) for run in group.runs])

    def scores(self, row: LevelRow) -> dict[str, Spread]:
        """Return :meth:`final` of the levels of a row by group, without groups that have no level or no score there."""
        spreads = {
            group.name: self.final(group, row.levels[group.name]) for group in self.groups if group.name in row.levels
        }
        return {name: spread for name, spread in spreads.items() if spread is not None}


def make_material(groups: Sequence[Group], target: float | None, missing: Sequence[str] = ()) -> Material:
    """Return the groups with the decisions about their comparison.

    Args:
        groups: at least one group.
        target: a score in the unit of ``metrics.csv``; None: :func:`usual_target`.
        missing: sentences on runs that were planned and are not among the groups.

    Raises:
        ConfigurationError: ``target`` is not a possible score.
    """
    part = None
    if target is None:
        target, part = usual_target(groups)
    else:
        check_target(target, groups[0].headline)
    matched = rows_by_cost(groups)
    runs = [run for group in groups for run in group.runs]
    tested = all(rounds_done(run) - 1 in rounds_of(run, column_of(run, GLOBAL, "test")) for run in runs)
    return Material(
        groups=groups,
        rows=rows_by_name(groups) if matched is None else matched[0],
        matched_by=None if matched is None else matched[1],
        stage="test" if tested else "val",
        validated=last_validated(groups),
        own_global=any(_global_is_no_level(group) for group in groups),
        target=target,
        part_of_best=part,
        missing=missing,
    )


def check_target(target: float, headline: Headline) -> None:
    """Refuse a target that is not a possible score.

    Raises:
        ConfigurationError: the target is not finite; or the headline is a percentage and the target is not in (0, 1].
    """
    if headline.percent and not 0 < target <= 1:
        raise ConfigurationError(f"Expected --target, {headline.one}, above 0 and at most 1 but got {target:g}")
    if not isfinite(target):
        raise ConfigurationError(f"Expected --target, {headline.one}, to be finite but got {target:g}")


def usual_target(groups: Sequence[Group]) -> tuple[float, float]:
    """Return the default target, and its ratio to the best score of the group whose best score is worst.

    The ratio is :data:`PART_OF_BEST` or 2 - :data:`PART_OF_BEST`, so that the target is easier than that best score.
    """
    headline, bests = groups[0].headline, [best_score(group) for group in groups]
    worst = min(bests) if headline.higher_is_better else max(bests)
    part = PART_OF_BEST if (worst >= 0) == headline.higher_is_better else 2 - PART_OF_BEST
    return part * worst, part


def _global_is_no_level(group: Group) -> bool:
    for run in group.runs:
        columns = [column_of(run, run.levels[0]) if run.levels else "", column_of(run, GLOBAL)]
        if columns[0] not in run.metrics.columns:
            return True
        level, whole = (np.asarray(run.series(column), dtype=np.float64) for column in columns)
        if not np.allclose(level, whole, equal_nan=True):
            return True
    return False


def left_out(material: Material, cost: Cost) -> str | None:
    """Return a sentence about groups whose runs do not have a cost; None if all have it."""
    without = [group.name for group in material.groups if not spends(group, cost)]
    if not without:
        return None
    names = "all groups" if len(without) == len(material.groups) else ", ".join(without)
    return f"{material.headline.heading} over {cost.name} is left out for {names}: {cost.column} is missing or 0."
