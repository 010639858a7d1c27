"""The order of a report: results, costs, clients, and settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from hetfl.report.checks import differing_data, rounds_asked, rounds_done, unfinished
from hetfl.report.clusters import cluster_table, clustered
from hetfl.report.document import Block, Document, Picture, Points, Section, Text, Verdict
from hetfl.report.experiment import facts, missing_runs
from hetfl.report.matching import BY, TOLERANCE
from hetfl.report.material import Material, left_out
from hetfl.report.series import BYTES, COSTS, FLOPS, GLOBAL, SECONDS, Cost, column_of
from hetfl.report.spread import span, spread_text
from hetfl.report.tables import (
    STAGES,
    budget_table,
    client_table,
    equal_cost_table,
    final_table,
    group_table,
    settings_table,
    target_table,
)
from hetfl.report.values import PICTURE as VALUES
from hetfl.report.values import ValuedRun, left_out_table, value_table, valued
from hetfl.report.verdict import clients_text, density_text, ends_over, front_text, rule, verdict
from hetfl.report.wording import caution, findings, listed, look_for


def compose(material: Material, pictures: Collection[str]) -> Document:
    """Return the whole report.

    Args:
        material: the runs and the decisions about their comparison.
        pictures: names of the figures that exist.
    """
    names = ", ".join(group.name for group in material.groups)
    headline = material.headline
    sections = [
        Section("Result", list(_result(material, pictures))),
        Section("Experiment", [facts(material.groups), group_table(material)]),
        Section("In detail", list(_details(material))),
        *(_over(material, cost, pictures) for cost in COSTS),
        Section("At the same budget", list(_budgets(material))),
        Section(f"To a target {headline.words}", [Text(_target_text(material)), target_table(material)]),
        Section("Clients", list(_clients(material, pictures))),
    ]
    if clustered(material.groups):
        sections.append(Section("Clusters", list(_clusters(material, pictures))))
    if runs := valued(material.groups):
        sections.append(Section("Values of clients", list(_values(material, runs, pictures))))
    if f"{headline.name}_of_heads" in pictures:
        sections.append(Section("Heads", list(_heads(material, pictures))))
    sections.append(Section("Settings", list(_settings(material))))
    return Document(f"Report: {names}", sections)


def warnings_of(material: Material) -> list[str]:
    """Return sentences on what is missing in a report, and on what cannot be compared."""
    warnings = [*(material.missing or missing_runs(material.groups))]
    warnings += [
        f"Not finished: {run.folder.name} of {name} has {rounds_done(run)} of {rounds_asked(run)} rounds."
        for name, run in unfinished(material.groups)
    ]
    warnings += [
        f"Different data: {key} is {one} in {first} and {other} in {second}; "
        f"{material.headline.several} on them are not comparable."
        for key, first, one, second, other in differing_data(material.groups)
    ]
    warnings += list(_not_numbers(material))
    return warnings + [
        f"No config.yaml in the runs of {group.name}: their data, seeds and settings could not be checked."
        for group in material.groups
        if not group.settings
    ]


def _not_numbers(material: Material) -> Iterator[str]:
    """Yield a sentence on every run with a score that is not a number, after the round in which groups are compared."""
    for group in material.groups:
        for run in group.runs:
            rounds = {part: run.nan_rounds.get(column_of(run, part, material.stage)) for part in (GLOBAL, *run.levels)}
            parts = [part for part, known in rounds.items() if known and material.round_of(run) in known]
            if parts:
                named = listed(["the global model" if part == GLOBAL else f"level {part}" for part in parts])
                yield (
                    f"Not a number: {STAGES[material.stage].lower()} {material.headline.words} {material.when} of "
                    f"{named} in {run.folder.name} of {group.name}, so {group.name} has no score there."
                )


def _result(material: Material, pictures: Collection[str]) -> Iterator[Block]:
    several = len(material.groups) > 1
    key, picture = f"{material.headline.name}_over_size", None
    if key in pictures:
        looking = look_for("size", material.headline) if several else ""
        caption = f"{material.headline.heading} {material.when} over the size of the level. {looking}".strip()
        picture = Picture(key, caption, " ".join(verdict(material)))
    notes = [rule(), *filter(None, [caution(material)])] if several else []
    yield Verdict(verdict(material), notes, warnings_of(material), picture)
    if material.matched_by is not None:
        yield equal_cost_table(material)


def _details(material: Material) -> Iterator[Block]:
    counts = [len(group.runs) for group in material.groups]
    yield Text(spread_text(counts))
    yield from (Text(sentence) for sentence in _compared_after(material))
    if not material.own_global:
        yield Text("The largest level is the global model.")
    if len(material.groups) > 1:
        yield Points(findings(material))
    if material.matched_by is None:
        yield Text("Not every group has a levels.csv, so sizes are unknown, and levels are matched by their names.")
    elif len(material.groups) > 1:
        cost = BY[material.matched_by]
        yield Text(f"Levels that are compared have {cost} that differ by at most {100 * TOLERANCE - 100:.0f} %.")
    yield final_table(material)


def _compared_after(material: Material) -> Iterator[str]:
    """Yield sentences on the rounds after which groups are compared, unless it is the same last round."""
    rounds = {group.name: [rounds_done(run) for run in group.runs] for group in material.groups}
    if len({count for counts in rounds.values() for count in counts}) > 1:
        counts = ", ".join(f"{name} {span(str(min(each)), str(max(each)))}" for name, each in rounds.items())
        after = ", and each run is evaluated after its last round" if material.after_last else ""
        yield f"Runs have different numbers of rounds ({counts}){after}."
    if material.stage == "test":
        return
    untested, scores = "Not every run was tested after its last round", material.headline.several
    if material.validated is None:
        yield f"{untested}, and there is no round that all runs validated, so there are no final {scores}."
    elif material.after_last:
        yield f"{untested}, so final {scores} are those of its validation."
    else:
        yield f"{untested}, so {scores} are those of validation {material.when}, the last that all runs validated."


def _picture(
    material: Material, key: str, pictures: Collection[str], looking: str, caption: str, result: str = ""
) -> Iterator[Block]:
    if key in pictures:
        yield Text(look_for(looking, material.headline))
        yield Picture(key, caption, result)


def _over(material: Material, cost: Cost, pictures: Collection[str]) -> Section:
    missing = left_out(material, cost)
    blocks: list[Block] = [] if missing is None else [Text(missing)]
    headline = material.headline
    key = f"{headline.name}_over_{cost.key}"
    spread = "thick line: mean over seeds, as far as all of them go; thin lines: seeds, to their own ends"
    caption = f"Validation {headline.words} over {cost.name}; {spread}."
    blocks += _picture(material, key, pictures, cost.key, caption, ends_over(material, cost))
    if cost is BYTES:
        caption = f"{headline.heading} of the global model {material.when} over all bytes that a run uploaded."
        blocks += _picture(material, f"{headline.name}_at_bytes", pictures, "at_bytes", caption, front_text(material))
        caption = "Share of the entries of clients' parts that were sent in each round."
        blocks += _picture(material, "density_over_rounds", pictures, "density", caption, density_text(material))
    return Section(f"{headline.heading} over {cost.name}", blocks)


def _budgets(material: Material) -> Iterator[Block]:
    one = material.headline.one
    yield Text(
        "The largest budget is the amount that every run of every group has spent at its last validation; the others "
        f"are a half and a quarter of it, left out if no run has {one} by then. {one[:1].upper()}{one[1:]} is the last "
        "one at or before the budget; a dash means that a run has none by then."
    )
    if material.matched_by is None:
        yield Text("The levels of a column have the same name; their sizes are unknown.")
    elif len(material.groups) > 1:
        yield Text(
            "A column holds levels of nearly the same cost, like a row above; small print has other names of a level."
        )
    for cost in (BYTES, FLOPS, SECONDS):
        if material.spending(cost):
            yield budget_table(material, cost)
        else:
            yield Text(str(left_out(material, cost)))


def _target_text(material: Material) -> str:
    headline = material.headline
    target = f"The target is a validation {headline.words} of {headline.shown(material.target)}"
    if material.part_of_best is None:
        return f"{target}, as asked for."
    worst = "lowest" if headline.higher_is_better else "highest"
    words = headline.words
    return f"{target}: {material.part_of_best:g} times the best {words} of the group whose best {words} is {worst}."


def _clients(material: Material, pictures: Collection[str]) -> Iterator[Block]:
    without = [group.name for group in material.groups if all(run.clients is None for run in group.runs)]
    headline = material.headline
    yield client_table(material)
    if without:
        yield Text(f"No clients.csv in {', '.join(without)}: the {headline.several} of single clients are unknown.")
    runs = [(group.name, run) for group in material.groups for run in group.runs if run.clients is not None]
    later = list(dict.fromkeys(name for name, run in runs if material.clients_of(run) is None))
    if later:
        yield Text(f"clients.csv of {', '.join(later)} is left out: it is of the last round, after more training.")
    caption = f"Share of the clients of all seeds with at most the {headline.words} on the horizontal axis."
    key = f"{headline.name}_of_clients"
    yield from _picture(material, key, pictures, "clients", caption, clients_text(material))


def _clusters(material: Material, pictures: Collection[str]) -> Iterator[Block]:
    runs = clustered(material.groups)
    without = [group.name for group in material.groups if all(each.group != group.name for each in runs)]
    yield cluster_table(runs)
    if without:
        yield Text(f"One global model for all clients in {', '.join(without)}.")
    first, headline = "for the first run of each group", material.headline
    members = f"The cluster of every client over rounds, {first}."
    yield from _picture(material, "cluster_members", pictures, "cluster_members", members)
    each = f"Validation {headline.words} of the model of each cluster on its clients over rounds, {first}."
    yield from _picture(material, f"cluster_{headline.name}", pictures, "cluster_score", each)
    tree = f"Splits of clusters, with numbers of clients, {first}."
    yield from _picture(material, "cluster_tree", pictures, "cluster_tree", tree)


def _values(material: Material, runs: Sequence[ValuedRun], pictures: Collection[str]) -> Iterator[Block]:
    yield value_table(runs)
    if (left_out := left_out_table(runs)) is not None:
        yield left_out
    caption = f"Values of clients over rounds and against their data, for the first run of {runs[0].group}."
    yield from _picture(material, VALUES, pictures, VALUES, caption)


def _heads(material: Material, pictures: Collection[str]) -> Iterator[Block]:
    caption = f"Validation {material.headline.words} of each head over rounds, the shallowest first."
    yield from _picture(material, f"{material.headline.name}_of_heads", pictures, "heads", caption)


def _settings(material: Material) -> Iterator[Block]:
    table = settings_table(material.groups)
    if table is None:
        yield Text("The settings of the groups differ only in seeds and folders.")
    else:
        yield Text("Seeds, folders and loggers are left out; a dash means that a group does not have the setting.")
        yield table
