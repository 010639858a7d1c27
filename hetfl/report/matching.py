"""Which level of one group stands beside which of another: those of nearly the same cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from hetfl.errors import ConfigurationError
from hetfl.report.groups import Group

TOLERANCE = 1.25
"""Levels stand side by side whose costs differ by at most this factor."""

BY = {"parameters": "parameters", "training_flops": "FLOPs per training sample"}
"""Columns of ``levels.csv`` that levels can be matched by, and what the text calls them."""


@dataclass(frozen=True)
class LevelRow:
    """Levels that are compared.

    Attributes:
        name: what the row is called: the levels' names.
        levels: per group that has such a level, its name there.
    """

    name: str
    levels: Mapping[str, str]


def level_sizes(group: Group) -> dict[str, dict[str, float]] | None:
    """Return the numbers of ``levels.csv`` by level and column, NaN for none; None where no run of the group has it.

    Raises:
        ConfigurationError: a level costs nothing, or there is none.
    """
    for run in group.runs:
        if run.level_table is not None:
            if run.level_table.empty or not (run.level_table[list(BY)] > 0).all(axis=None):
                raise ConfigurationError(
                    f"Expected levels with parameters and training_flops above 0 in {run.folder / 'levels.csv'} "
                    "but got others or none"
                )
            numbers = run.level_table.set_index("level").apply(pd.to_numeric, errors="coerce")
            return {str(level): {str(k): float(v) for k, v in row.items()} for level, row in numbers.iterrows()}
    return None


def rows_by_name(groups: Sequence[Group]) -> list[LevelRow]:
    """Return a row per name of a level, with the groups that have it, in the order of the groups' levels."""
    names = dict.fromkeys(level for group in groups for run in group.runs for level in run.levels)
    has = {group.name: {level for run in group.runs for level in run.levels} for group in groups}
    return [LevelRow(name, {group: name for group, levels in has.items() if name in levels}) for name in names]


def rows_by_cost(groups: Sequence[Group]) -> tuple[list[LevelRow], str] | None:
    """Return rows of levels that cost nearly the same, the dearest first, and the column of ``levels.csv`` that it is.

    The group with the most levels makes the rows; each other group's levels take rows, one each, so that as many as
    possible are within :data:`TOLERANCE` and then as close as possible; what is left makes rows of its own. Parameters
    decide, unless FLOPs give fewer rows.

    Returns:
        None where a group has no ``levels.csv``.
    """
    sizes = {group.name: level_sizes(group) for group in groups}
    known = {name: levels for name, levels in sizes.items() if levels is not None}
    if len(known) < len(groups):
        return None
    candidates = [
        (rows_of({name: {level: row[by] for level, row in levels.items()} for name, levels in known.items()}), by)
        for by in BY
    ]
    return min(candidates, key=lambda candidate: len(candidate[0]))


def rows_of(costs: Mapping[str, Mapping[str, float]]) -> list[LevelRow]:
    """Return rows of levels within :data:`TOLERANCE` of each other's cost, the dearest first.

    Args:
        costs: per group the cost of each of its levels, above 0.

    >>> [dict(row.levels) for row in rows_of({"width": {"a": 100, "b": 50}, "depth": {"x": 95, "y": 20}})]
    [{'width': 'a', 'depth': 'x'}, {'width': 'b'}, {'depth': 'y'}]
    """
    members: list[dict[str, str]] = []
    places: list[list[float]] = []  # of each row, the logarithms of its levels' costs
    for group in sorted(costs, key=lambda name: -len(costs[name])):
        levels = list(costs[group])
        own = np.log([costs[group][level] for level in levels])
        far = np.array([[max(abs(one - other) for other in row) for row in places] for one in own])
        # A pair that is too far apart costs more than all that are not: first as many pairs as possible, then close.
        price = np.where(far <= np.log(TOLERANCE) + 1e-12, far, 1e3)
        pairs = dict(zip(*(side.tolist() for side in linear_sum_assignment(price)), strict=True))
        for number, level in enumerate(levels):
            row = pairs.get(number)
            if row is not None and price[number, row] < 1e3:
                members[row][group] = level
                places[row].append(float(own[number]))
            else:
                members.append({group: level})
                places.append([float(own[number])])
    by_cost = sorted(range(len(members)), key=lambda row: -places[row][0])
    return [_named({group: members[row][group] for group in costs if group in members[row]}) for row in by_cost]


def _named(levels: Mapping[str, str]) -> LevelRow:
    return LevelRow(" / ".join(dict.fromkeys(levels.values())), levels)
