"""The figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from hetfl.analysis.theme import Style
from hetfl.report.clusters import cluster_figures
from hetfl.report.figures import drawing_of
from hetfl.report.groups import Group
from hetfl.report.matching import level_sizes
from hetfl.report.material import Material
from hetfl.report.panels import Axis, Drawing, Panel
from hetfl.report.series import (
    COSTS,
    DENSITY,
    GLOBAL,
    ROUNDS,
    Band,
    Cost,
    Numbers,
    band,
    band_of,
    column_over,
    names_of,
)
from hetfl.report.trade_off import score_at_bytes
from hetfl.report.values import PICTURE as VALUES
from hetfl.report.values import value_figure
from hetfl.runs.headline import Headline

SIZE_LOOK: dict[str, Any] = {"log": True, "points": True, "height": 3.2}
SIZE_AXES = {
    "parameters": Axis("Parameters of the level (thousands)", scale=1e3, **SIZE_LOOK),
    "training_flops": Axis("Computed for a training sample at the level (MFLOP)", scale=1e6, **SIZE_LOOK),
}
"""By measure of size the axis of the figure over sizes."""


def score_over(material: Material, cost: Cost, styles: dict[str, Style]) -> Drawing | None:
    """Draw the validation headline over a cost, a panel per row of levels; None if no group has the cost."""
    panels = [
        (", ".join(filter(None, (row.name, material.size_of(row, short=True)))), row.levels) for row in material.rows
    ]
    if material.own_global:
        panels.append(("global model", {group.name: GLOBAL for group in material.groups}))
    groups = material.spending(cost)
    filled = [
        Panel(title, _known({g.name: band(g.runs, levels[g.name], cost) for g in groups if g.name in levels}))
        for title, levels in panels
    ]
    axis = Axis(cost.axis, scale=cost.scale, rounds=cost is ROUNDS)
    return _drawn(filled, axis.of(material.headline, material.chance), styles)


def score_over_size(material: Material, styles: dict[str, Style]) -> Drawing | None:
    """Draw the headline of every level in the last round over its size; None if sizes are unknown."""
    if material.matched_by is None:
        return None
    bands = {group.name: _by_size(material, group, material.matched_by) for group in material.groups}
    return _drawn(
        [Panel("", _known(bands))], SIZE_AXES[material.matched_by].of(material.headline, material.chance), styles
    )


def density_over_rounds(material: Material, styles: dict[str, Style]) -> Drawing | None:
    """Draw the share of the entries that were sent in each round; None if every group sent all of them."""
    bands = {}
    for group in material.groups:
        curves = {
            seed: column_over(run, DENSITY, ROUNDS) for seed, run in zip(names_of(group.runs), group.runs, strict=True)
        }
        # Nothing is sent in a round whose updates were all refused; a logarithm has no place for it.
        curves = {seed: (x[sent > 0], sent[sent > 0]) for seed, (x, sent) in curves.items()}
        bands[group.name] = band_of(curves)
    known = _known(bands)
    sent = [values for each in known.values() for values in (each.mean, *(y for _, y in each.seeds.values()))]
    if not sent or min(float(values.min()) for values in sent if len(values)) >= 1:
        return None
    lowest, highest = (end(float(end(values)) for values in sent if len(values)) for end in (min, max))
    axis = Axis(ROUNDS.axis, "Entries sent (%)", rounds=True, log_y=highest > 10 * lowest)
    return _drawn([Panel("", known)], axis, styles)


def score_of_heads(material: Material, styles: dict[str, Style]) -> Drawing | None:
    """Draw the validation headline of every head over rounds; None without heads."""
    names = dict.fromkeys(head for group in material.groups for run in group.runs for head in run.heads)
    panels = [
        Panel(name.replace("_", " "), _known({g.name: band(g.runs, name, ROUNDS) for g in material.groups}))
        for name in names
    ]
    return _drawn(panels, Axis(ROUNDS.axis, rounds=True).of(material.headline, material.chance), styles)


def score_of_clients(material: Material, styles: dict[str, Style]) -> Drawing | None:
    """Draw the share of clients with at most each score; None without scores of clients."""
    headline = material.headline
    titles = {headline.name: "global model", headline.own: "sub-model of the client's level"}
    scores = {
        title: {group.name: _scores_of_clients(material, group, column) for group in material.groups}
        for column, title in titles.items()
    }
    every = np.concatenate([values for by_group in scores.values() for values in by_group.values()])
    # All lines cover the whole range of scores, so that their flat parts can be compared.
    ends = (0.0, 1.0) if headline.percent or not len(every) else (float(every.min()), float(every.max()))
    panels = [
        Panel(title, _known({name: _distribution(values, *ends) for name, values in by_group.items()}))
        for title, by_group in scores.items()
    ]
    name = headline.in_unit(f"{headline.heading} on the test data of a client")
    return _drawn(panels, Axis(name, "Clients (%)", scale=1 / headline.scale, log=False, steps=True), styles)


def _drawn(panels: list[Panel], axis: Axis, styles: dict[str, Style]) -> Drawing | None:
    filled = [panel for panel in panels if panel.bands]
    return drawing_of(filled, axis, styles) if filled else None


def _known(bands: Mapping[str, Band | None]) -> dict[str, Band]:
    return {name: each for name, each in bands.items() if each is not None}


def _by_size(material: Material, group: Group, column: str) -> Band | None:
    known = level_sizes(group)
    assert known is not None  # levels are matched by cost only if all groups have sizes
    finals = [(sizes[column], material.final(group, level)) for level, sizes in known.items()]
    rows = [(size, each.mean, each.low, each.high) for size, each in finals if each is not None and isfinite(each.mean)]
    if not rows:
        return None
    x, mean, low, high = np.array(sorted(rows)).T
    return Band(x, mean, low, high, len(group.runs))


def _scores_of_clients(material: Material, group: Group, column: str) -> Numbers:
    """Return the finite values of a column of ``clients.csv``, over all clients and seeds, ascending."""
    known = (material.clients_of(run) for run in group.runs)
    tables = [clients[column] for clients in known if clients is not None]
    scores = np.concatenate([np.asarray(table, dtype=np.float64) for table in tables] or [np.empty(0)])
    return np.sort(scores[np.isfinite(scores)])


def _distribution(scores: Numbers, low: float, high: float) -> Band | None:
    """Return the share of clients with at most each score, from 0 % at ``low`` to 100 % at ``high``; None if empty."""
    if not len(scores):
        return None
    x = np.unique(scores)
    share = np.searchsorted(scores, x, side="right") / len(scores)
    x, share = np.concatenate([[low], x, [high]]), np.concatenate([[0.0], share, [1.0]])
    return Band(x, share, share, share, 1)


def draw_all(material: Material, styles: dict[str, Style]) -> dict[str, Drawing]:
    """Return the figures of a report by file name; figures without data are left out."""
    name = material.headline.name
    made: dict[str, Drawing | None] = {f"{name}_over_size": score_over_size(material, styles)}
    for cost in COSTS:
        made[f"{name}_over_{cost.key}"] = score_over(material, cost, styles)
    made[f"{name}_at_bytes"] = score_at_bytes(material, styles)
    made["density_over_rounds"] = density_over_rounds(material, styles)
    made[f"{name}_of_heads"] = score_of_heads(material, styles)
    made[f"{name}_of_clients"] = score_of_clients(material, styles)
    made |= {**cluster_figures(material.groups), VALUES: value_figure(material.groups)}
    return {key: drawing for key, drawing in made.items() if drawing is not None}


def picture_names(headline: Headline) -> Sequence[str]:
    """Return the file names, without suffix, of all figures that a report on a headline may have."""
    over = [f"{headline.name}_over_{key}" for key in ("size", *(cost.key for cost in COSTS))]
    of = [f"{headline.name}_of_{key}" for key in ("heads", "clients")]
    return [
        *over,
        f"{headline.name}_at_bytes",
        "density_over_rounds",
        *of,
        "cluster_members",
        f"cluster_{headline.name}",
        "cluster_tree",
        VALUES,
    ]
