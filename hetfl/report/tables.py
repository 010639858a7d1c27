"""The tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan

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
from hetfl.report.spread import FEW, Spread, leader_of, span, spread_of

NONE = "–"
SIDE_BY_SIDE = 3
"""Maximum number of groups that are columns of the table of levels of equal cost."""
STAGES = {"test": "Test", "val": "Validation"}
LOCAL = {
    "mean": "mean over clients",
    "by_samples": "mean over their samples",
    "std": "spread over clients",
    "worst10": "mean over the worst tenth",
}


def quantity(spread: Spread | None, write: Callable[[float], str], *, strong: bool = False) -> Cell:
    """Return an amount with its spread in small print, or a dash; the spread is left out if its ends look the same.

    >>> quantity(Spread(2.0, 1.0, 3.0, 2), "{:g} MB".format)
    Cell(text='2 MB', note='1–3 MB', strong=False, value=2.0)
    >>> quantity(Spread(2.0, 2.0, 2.0, 2), "{:g} MB".format).note
    ''
    """
    if spread is None:
        return Cell(NONE)
    mean, low, high = write(spread.mean), write(spread.low), write(spread.high)
    note = "" if spread.n == 1 or low == high else span(low, high)
    if note and spread.n >= FEW:
        note = f"± {write(spread.high - spread.mean)}"
    return Cell(mean, note, strong, spread.mean)


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
    """Return the table of levels of nearly the same cost: the score and the size of each level, and the lead.

    More than :data:`SIDE_BY_SIDE` groups are rows, and levels are columns.
    """
    if len(material.groups) > SIDE_BY_SIDE:
        return _group_rows(material)
    names = [group.name for group in material.groups]
    rows: list[list[str | Cell]] = []
    for row in material.rows:
        results = {group.name: _of_row(material, group, row) for group in material.groups}
        leader = leader_of(results, material.headline)
        cells = [
            _level_cell(material, group, row.levels[group.name], results[group.name], group.name == leader)
            if group.name in row.levels
            else Cell(NONE)
            for group in material.groups
        ]
        rows.append([row.name, *cells, *[_lead_cell(material, results, leader)] * (len(names) > 1)])
    lead = [] if len(names) < 2 else [f"Δ {names[0]} − {names[1]}"] if len(names) == 2 else ["lead"]
    return Table(_equal_cost_caption(material, "row"), ["level", *names, *lead], rows)


def _group_rows(material: Material) -> Table:
    columns = [{group.name: _of_row(material, group, row) for group in material.groups} for row in material.rows]
    leaders = [leader_of(results, material.headline) for results in columns]
    rows: list[list[str | Cell]] = []
    for group in material.groups:
        scores = zip((results[group.name] for results in columns), leaders, strict=True)
        cells = [quantity(each, material.headline.shown, strong=leader == group.name) for each, leader in scores]
        rows.append([group.name, *cells])
    lead = [_lead_cell(material, results, leader) for results, leader in zip(columns, leaders, strict=True)]
    heads = [", ".join(filter(None, (row.name, material.size_of(row, short=True)))) for row in material.rows]
    return Table(_equal_cost_caption(material, "column"), ["group", *heads], [*rows, [Cell("lead"), *lead]])


def _equal_cost_caption(material: Material, place: str) -> str:
    score = f"{STAGES[material.stage]} {material.headline.words}"
    bold = " Bold: the group is told apart from all others as better." if len(material.groups) > 1 else ""
    return (
        f"{score} of levels of nearly the same {BY[str(material.matched_by)]}, one {place} each, {material.when}.{bold}"
    )


def _of_row(material: Material, group: Group, row: LevelRow) -> Spread | None:
    return material.final(group, row.levels[group.name]) if group.name in row.levels else None


def _lead_cell(material: Material, results: Mapping[str, Spread | None], leader: str | None) -> Cell:
    """Return how far the first of two groups is ahead, or by how much which of several leads."""
    known = {name: spread for name, spread in results.items() if spread is not None}
    if len(known) < 2:
        return Cell(NONE)
    headline, single = material.headline, any(spread.n < 2 for spread in known.values())
    note = "" if leader else "one seed cannot tell" if single else "not told apart"
    if len(results) == 2:
        one, other = (known[name] for name in results)
        gap = one.mean - other.mean
        sign = "+" if gap > 0 else "−" if gap < 0 else ""
        return Cell(f"{sign}{headline.difference(abs(gap))}", note, leader is not None, gap)
    if leader is None:
        return Cell(note)
    gap = min(abs(known[leader].mean - spread.mean) for name, spread in known.items() if name != leader)
    return Cell(f"{leader} by {headline.difference(gap)}", "", True, gap)


def _level_cell(material: Material, group: Group, level: str, final: Spread | None, leads: bool) -> Cell:
    known = level_sizes(group)
    assert known is not None  # levels are matched by cost only if all groups have sizes
    sizes = known[level]
    shown = ("width", "depth", "rank", *["density"] * (sizes["density"] < 1))
    axes = [f"{axis} {sizes[axis]:.4g}" for axis in shown if not isnan(sizes[axis])]
    flops = format_quantity(sizes["training_flops"], "FLOP")
    what = [" × ".join(axes), f"{round(sizes['parameters']):,} parameters", f"{flops} a sample"]
    size = f"{level}: {', '.join(filter(None, what))}"
    score = quantity(final, material.headline.shown, strong=leads)
    return replace(score, note="; ".join(filter(None, (score.note, size))))


def final_table(material: Material) -> Table:
    """Return the table of the scores of all levels, a row per group, a column per name of a level."""
    parts, headline = material.parts, material.headline
    columns = {part: {group.name: material.final(group, part) for group in material.groups} for part in parts}
    leaders = {part: leader_of(results, headline) for part, results in columns.items()}
    rows: list[list[str | Cell]] = []
    for group in material.groups:
        scores = {part: columns[part][group.name] for part in parts}
        cells = [quantity(each, headline.shown, strong=leaders[part] == group.name) for part, each in scores.items()]
        rows.append([group.name, *cells])
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
        amount = fraction * largest
        scores = [_at_budget(groups, row, cost, amount) for row in columns]
        if all(spread is None for by_group in scores for spread in by_group.values()):
            continue
        leaders = [leader_of(by_group, material.headline) for by_group in scores]
        for group in groups:
            cells = [
                _budget_cell(material, group, row, by_group.get(group.name), leader == group.name)
                for row, by_group, leader in zip(columns, scores, leaders, strict=True)
            ]
            rows.append([Cell(f"{share}: {cost.write(amount)}", value=amount), group.name, *cells])
    heads = [", ".join(filter(None, (row.name, material.size_of(row, short=True)))) for row in material.rows]
    heads += ["global model"] * material.own_global
    caption = f"Validation {material.headline.words} at the same {cost.name}."
    return Table(caption, ["budget", "group", *heads], rows)


def _at_budget(groups: Sequence[Group], row: LevelRow, cost: Cost, amount: float) -> dict[str, Spread | None]:
    return {
        group.name: spread_of([score_at(run, row.levels[group.name], cost, amount) for run in group.runs])
        for group in groups
        if group.name in row.levels
    }


def _budget_cell(material: Material, group: Group, row: LevelRow, spread: Spread | None, leads: bool) -> Cell:
    if group.name not in row.levels:
        return Cell(NONE)
    level = row.levels[group.name]
    score = quantity(spread, material.headline.shown, strong=leads)
    name = "" if level == row.name else f"level {level}"
    return replace(score, note="; ".join(filter(None, (score.note, name))))


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
        spreads.append(spread_of([_own_mean(material, run) for run in group.runs]))
        rows.append([group.name, *(quantity(spread, headline.shown) for spread in spreads)])
    return Table(
        f"{headline.heading} on the clients' test data {material.when}.",
        ["group", *(f"global model, {name}" for name in LOCAL.values()), "sub-model of the client's level, mean"],
        rows,
    )


def _own_mean(material: Material, run: Run) -> float | None:
    """Return the mean score of the sub-models; None without clients with test samples, or if one of them has none."""
    clients = material.clients_of(run)
    if clients is None:
        return None
    mean = float(clients.loc[clients["test_samples"] > 0, run.headline.own].mean(skipna=False))
    return None if isnan(mean) else mean


def settings_table(groups: Sequence[Group]) -> Table | None:
    """Return the table of the settings in which groups differ, a column per group; None if there are none."""
    rows = [[name, *values] for name, values in differing_settings(groups).items()]
    if not rows:
        return None
    return Table("Settings that differ.", ["setting", *(group.name for group in groups)], rows, code=True)
