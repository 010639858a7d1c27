"""Matching of the levels of different groups by nearly the same cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from hetfl.errors import ConfigurationError
from hetfl.report.groups import Group

TOLERANCE = 1.25
"""Levels are matched if their costs differ by at most this factor."""

BY = {"parameters": "parameters", "training_flops": "FLOPs per training sample"}
"""Columns of ``levels.csv`` by which levels can be matched, and their names in texts; see :func:`level_sizes`."""


@dataclass(frozen=True)
class LevelRow:
    """Levels that are compared.

    Attributes:
        name: the distinct names of the levels.
        levels: name of the level by group, for groups that have such a level.
    """

    name: str
    levels: Mapping[str, str]


def level_sizes(group: Group) -> dict[str, dict[str, float]] | None:
    """Return the numbers of ``levels.csv`` by level and column, NaN for empty cells; None if no run has the file.

    The file has the parameters and FLOPs of the net of a level. Here they are multiplied by the density of the level,
    so they are those of the entries that a client holds.

    Raises:
        ConfigurationError: the file has no levels, or a level whose cost is not above 0.
    """
    for run in group.runs:
        if run.level_table is not None:
            numbers = run.level_table.set_index("level").apply(pd.to_numeric, errors="coerce")
            numbers[list(BY)] = numbers[list(BY)].mul(numbers["density"], axis="index")
            if numbers.empty or not (numbers[list(BY)] > 0).all(axis=None):
                raise ConfigurationError(
                    f"Expected levels with parameters, training_flops and density above 0 in "
                    f"{run.folder / 'levels.csv'} but got others or none"
                )
            return {str(level): {str(k): float(v) for k, v in row.items()} for level, row in numbers.iterrows()}
    return None


def rows_by_name(groups: Sequence[Group]) -> list[LevelRow]:
    """Return a row per name of a level, with the groups that have the level, in the order of the levels."""
    names = dict.fromkeys(level for group in groups for run in group.runs for level in run.levels)
    has = {group.name: {level for run in group.runs for level in run.levels} for group in groups}
    return [LevelRow(name, {group: name for group, levels in has.items() if name in levels}) for name in names]


def rows_by_cost(groups: Sequence[Group]) -> tuple[list[LevelRow], str] | None:
    """Return rows of levels of nearly the same cost, the most expensive first, and the column of ``levels.csv`` in use.

    The group with the most levels defines the rows. The levels of every other group are assigned to rows, so that as
    many levels as possible are within :data:`TOLERANCE`, and these as close as possible. The remaining levels become
    new rows. The costs are parameters, or FLOPs if these give fewer rows.

    Returns:
        The rows and the column; None if a group has no ``levels.csv``.
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
    """Return rows of levels whose costs are within :data:`TOLERANCE`, the most expensive first.

    Args:
        costs: the cost of each level, above 0, by group and level.

    >>> [dict(row.levels) for row in rows_of({"width": {"a": 100, "b": 50}, "depth": {"x": 95, "y": 20}})]
    [{'width': 'a', 'depth': 'x'}, {'width': 'b'}, {'depth': 'y'}]
    """
    members: list[dict[str, str]] = []
    places: list[list[float]] = []  # the logarithms of the costs of each row
    for group in sorted(costs, key=lambda name: -len(costs[name])):
        levels = list(costs[group])
        logs = np.log([costs[group][level] for level in levels])
        far = np.array([[max(abs(one - other) for other in row) for row in places] for one in logs])
        # A pair beyond the tolerance is more expensive than all pairs within it, so the number of pairs counts first.
        price = np.where(far <= np.log(TOLERANCE) + 1e-12, far, 1e3)
        pairs = dict(zip(*(side.tolist() for side in linear_sum_assignment(price)), strict=True))
        for number, level in enumerate(levels):
            row = pairs.get(number)
            if row is not None and price[number, row] < 1e3:
                members[row][group] = level
                places[row].append(float(logs[number]))
            else:
                members.append({group: level})
                places.append([float(logs[number])])
    by_cost = sorted(range(len(members)), key=lambda row: -places[row][0])
    return [_named({group: members[row][group] for group in costs if group in members[row]}) for row in by_cost]


def _named(levels: Mapping[str, str]) -> LevelRow:
    return LevelRow(" / ".join(dict.fromkeys(levels.values())), levels)
