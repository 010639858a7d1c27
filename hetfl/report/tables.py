"""The tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan

import pandas as pd

from hetfl.analysis import Run
from hetfl.display.formats import format_quantity
from hetfl.report.checks import rounds_done
from hetfl.report.document import Cell, Table
from hetfl.report.groups import Group, differing_settings, swept_settings
from hetfl.report.matching import BY, LevelRow, level_sizes
from hetfl.report.material import Material
from hetfl.report.series import (
    BYTES,
    COSTS,
    FLOPS,
    GLOBAL,
    SECONDS,
    Cost,
    amount_to_reach,
    common_budget,
    final_amount,
    score_at,
)
from hetfl.report.spread import FEW, Spread, span, spread_of

NONE = "–"
STAGES = {"test": "Test", "val": "Validation"}
LOCAL = {
    "mean": "mean over clients",
    "by_samples": "mean over their samples",
    "std": "spread over clients",
    "worst10": "mean over the worst tenth",
}


def quantity(spread: Spread | None, write: Callable[[float], str]) -> Cell:
    """Return an amount with its spread in small print, or a dash; the spread is left out if its ends look the same.

    >>> quantity(Spread(2.0, 1.0, 3.0, 2), "{:g} MB".format), quantity(Spread(2.0, 2.0, 2.0, 2), "{:g} MB".format)
    (Cell(text='2 MB', note='1–3 MB'), Cell(text='2 MB', note=''))
    """
    if spread is None:
        return Cell(NONE)
    mean, low, high = write(spread.mean), write(spread.low), write(spread.high)
    if spread.n == 1 or low == high:
        return Cell(mean)
    if spread.n >= FEW:
        return Cell(mean, f"± {write(spread.high - spread.mean)}")
    return Cell(mean, span(low, high))


def group_table(material: Material) -> Table:
    """Return the table of the groups: runs, rounds, and total costs."""
    rows: list[list[str | Cell]] = []
    swept = swept_settings(material.groups)
    for number, group in enumerate(material.groups):
        rounds = spread_of([rounds_done(run) for run in group.runs])
        spent = [
            quantity(spread_of([final_amount(run, cost.column) for run in group.runs]), cost.write)
            for cost in (BYTES, FLOPS, SECONDS)
        ]
        name, seeds = group.name, ", ".join(group.seeds)
        values = [row[number] for row in swept.values()]
        rows.append([name, *values, str(len(group.runs)), seeds, quantity(rounds, "{:.0f}".format), *spent])
    return Table(
        "The groups, and the total costs of a run.",
        ["group", *swept, "runs", "seeds", "rounds", "uploaded", "computed", "simulated time"],
        rows,
    )


def equal_cost_table(material: Material) -> Table:
    """Return the table of levels of nearly the same cost: the score and the size of each level."""
    rows: list[list[str | Cell]] = []
    for row in material.rows:
        cells = [
            _level_cell(material, group, row.levels[group.name]) if group.name in row.levels else Cell(NONE)
            for group in material.groups
        ]
        rows.append([row.name, *cells])
    score = f"{STAGES[material.stage]} {material.headline.words}"
    return Table(
        f"{score} of levels of nearly the same {BY[str(material.matched_by)]}, one row each, {material.when}.",
        ["level", *(group.name for group in material.groups)],
        rows,
    )


def _level_cell(material: Material, group: Group, level: str) -> Cell:
    known = level_sizes(group)
    assert known is not None  # levels are matched by cost only if all groups have sizes
    sizes = known[level]
    axes = [f"{axis} {sizes[axis]:.4g}" for axis in ("width", "depth", "rank") if not isnan(sizes[axis])]
    flops = format_quantity(sizes["training_flops"], "FLOP")
    what = [" × ".join(axes), f"{int(sizes['parameters']):,} parameters", f"{flops} a sample"]
    size = f"{level}: {', '.join(filter(None, what))}"
    score = quantity(material.final(group, level), material.headline.shown)
    return Cell(score.text, "; ".join(filter(None, (score.note, size))))


def final_table(material: Material) -> Table:
    """Return the table of the scores of all levels, a row per group, a column per name of a level."""
    parts, headline = material.parts, material.headline
    rows: list[list[str | Cell]] = [
        [group.name, *(quantity(material.final(group, part), headline.shown) for part in parts)]
        for group in material.groups
    ]
    caption = f"{STAGES[material.stage]} {headline.words} {material.when}, by name of the level."
    return Table(caption, ["group", *parts], rows)


def budget_table(material: Material, cost: Cost) -> Table:
    """Return the table of the validation headline at the largest amount that all groups spend, a half and a quarter.

    A smaller amount at which no group has a value is left out.

    A column has the levels of one row; small print has the name of a level if it differs from the name of the row.
    """
    groups = material.spending(cost)
    largest = common_budget(groups, cost)
    whole = LevelRow(GLOBAL, dict.fromkeys((group.name for group in groups), GLOBAL))
    columns = [*material.rows, *[whole] * material.own_global]
    rows: list[list[str | Cell]] = []
    for share, fraction in (("¼", 0.25), ("½", 0.5), ("all", 1.0)):
        scores = [[_budget_cell(group, row, cost, fraction * largest) for row in columns] for group in groups]
        if all(score.text == NONE for cells in scores for score in cells):
            continue
        for group, cells in zip(groups, scores, strict=True):
            budget = f"{share}: {cost.write(fraction * largest)}" if group is groups[0] else ""
            rows.append([budget, group.name, *cells])
    heads = [", ".join(filter(None, (row.name, material.size_of(row, short=True)))) for row in material.rows]
    heads += ["global model"] * material.own_global
    caption = f"Validation {material.headline.words} at the same {cost.name}."
    return Table(caption, ["budget", "group", *heads], rows)


def _budget_cell(group: Group, row: LevelRow, cost: Cost, budget: float) -> Cell:
    if group.name not in row.levels:
        return Cell(NONE)
    level = row.levels[group.name]
    score = quantity(spread_of([score_at(run, level, cost, budget) for run in group.runs]), group.headline.shown)
    name = "" if level == row.name else f"level {level}"
    return Cell(score.text, "; ".join(filter(None, (score.note, name))))


def target_table(material: Material) -> Table:
    """Return the table of the costs of each group until its global model reached the target."""
    rows: list[list[str | Cell]] = [
        [group.name, *(_to_target(group, material, cost) for cost in COSTS)] for group in material.groups
    ]
    headline = material.headline
    least = f"{headline.shown(material.target)} or {'more' if headline.higher_is_better else 'less'}"
    return Table(
        f"Spent by the first validation of the global model at {least}.",
        ["group", "rounds", "uploaded", "computed", "simulated time"],
        rows,
    )


def _to_target(group: Group, material: Material, cost: Cost) -> Cell:
    if group not in material.spending(cost):
        return Cell(NONE)
    amounts = [amount_to_reach(run, material.target, cost) for run in group.runs]
    reached = sum(amount is not None for amount in amounts)
    if 0 < reached < len(amounts):
        return Cell(f"reached by {reached} of {len(amounts)} runs")
    return quantity(spread_of(amounts), cost.write) if reached else Cell("not reached")


def client_table(material: Material) -> Table:
    """Return the table of scores on the test data of the clients, of the global model and of their sub-models."""
    headline = material.headline
    rows: list[list[str | Cell]] = []
    for group in material.groups:
        spreads = [spread_of([material.value(run, headline.local(figure)) for run in group.runs]) for figure in LOCAL]
        spreads.append(spread_of([_own_mean(run) for run in group.runs]))
        rows.append([group.name, *(quantity(spread, headline.shown) for spread in spreads)])
    return Table(
        f"{headline.heading} on the clients' test data {material.when}.",
        ["group", *(f"global model, {name}" for name in LOCAL.values()), "sub-model of the client's level, mean"],
        rows,
    )


def _own_mean(run: Run) -> float | None:
    scores = run.clients[run.headline.own].dropna() if run.clients is not None else pd.Series(dtype="float64")
    return float(scores.mean()) if len(scores) else None


def settings_table(groups: Sequence[Group]) -> Table | None:
    """Return the table of the settings in which groups differ, a column per group; None if there are none."""
    rows = [[name, *values] for name, values in differing_settings(groups).items()]
    if not rows:
        return None
    return Table("Settings that differ.", ["setting", *(group.name for group in groups)], rows, code=True)
