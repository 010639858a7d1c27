"""Which pictures a report has, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from hetfl.report.clusters import cluster_figures
from hetfl.report.figures import Axis, Panel, Style, draw_panels
from hetfl.report.groups import Group
from hetfl.report.matching import level_sizes
from hetfl.report.material import Material
from hetfl.report.series import COSTS, GLOBAL, ROUNDS, Band, Cost, band

SIZE_AXES = {
    "parameters": Axis("Parameters of the level (thousands)", scale=1e3, log=True, points=True),
    "training_flops": Axis("Computed for a training sample at the level (MFLOP)", scale=1e6, log=True, points=True),
}
CLIENT_PANELS = {"accuracy": "global model", "own_accuracy": "sub-model of the client's level"}


def accuracy_over(material: Material, cost: Cost, styles: dict[str, Style]) -> Figure | None:
    """Draw validation accuracy over a cost, a panel per row of levels; None where nobody counts the cost."""
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
    axis = Axis(cost.axis, scale=cost.scale, whole=cost is ROUNDS)
    return _drawn(filled, axis, styles)


def accuracy_over_size(material: Material, styles: dict[str, Style]) -> Figure | None:
    """Draw every level's accuracy in the last round over its size; None where sizes are not known."""
    if material.matched_by is None:
        return None
    bands = {group.name: _by_size(material, group, material.matched_by) for group in material.groups}
    return _drawn([Panel("", _known(bands))], SIZE_AXES[material.matched_by], styles)


def accuracy_of_heads(material: Material, styles: dict[str, Style]) -> Figure | None:
    """Draw the validation accuracy of every head over rounds; None where nobody has heads."""
    names = dict.fromkeys(head for group in material.groups for run in group.runs for head in run.heads)
    panels = [
        Panel(name.replace("_", " "), _known({g.name: band(g.runs, name, ROUNDS) for g in material.groups}))
        for name in names
    ]
    return _drawn(panels, Axis(ROUNDS.axis, whole=True), styles)


def accuracy_of_clients(material: Material, styles: dict[str, Style]) -> Figure | None:
    """Draw which share of the clients has at most which accuracy; None where no run says."""
    panels = [
        Panel(title, _known({group.name: _distribution(group, column) for group in material.groups}))
        for column, title in CLIENT_PANELS.items()
    ]
    axis = Axis("Accuracy on a client's own test data (%)", "Clients (%)", scale=0.01, log=False, steps=True)
    return _drawn(panels, axis, styles)


def _drawn(panels: list[Panel], axis: Axis, styles: dict[str, Style]) -> Figure | None:
    filled = [panel for panel in panels if panel.bands]
    return draw_panels(filled, axis, styles) if filled else None


def _known(bands: Mapping[str, Band | None]) -> dict[str, Band]:
    return {name: each for name, each in bands.items() if each is not None}


def _by_size(material: Material, group: Group, column: str) -> Band | None:
    known = level_sizes(group)
    assert known is not None  # else levels were not matched by cost
    found = {
        sizes[column]: spread for level, sizes in known.items() if (spread := material.final(group, level)) is not None
    }
    if not found:
        return None
    x = sorted(found)
    mean, low, high = (np.array([getattr(found[size], name) for size in x]) for name in ("mean", "low", "high"))
    return Band(np.array(x), mean, low, high, len(group.runs))


def _distribution(group: Group, column: str) -> Band | None:
    """Return the share of clients, of all seeds together, with at most each accuracy."""
    tables = [run.clients[column].dropna() for run in group.runs if run.clients is not None]
    accuracy = np.sort(np.concatenate([np.asarray(table, dtype=np.float64) for table in tables] or [np.empty(0)]))
    if not len(accuracy):
        return None
    x = np.unique(accuracy)
    share = np.searchsorted(accuracy, x, side="right") / len(accuracy)
    # From 0 % at the left end to 100 % at the right one, so that lines can be told apart where they are flat.
    x, share = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], share, [1.0]])
    return Band(x, share, share, share, 1)


def draw_all(material: Material, styles: dict[str, Style]) -> dict[str, Figure]:
    """Return the report's pictures by the names of their files, less those for which nothing is known."""
    made: dict[str, Figure | None] = {"accuracy_over_size": accuracy_over_size(material, styles)}
    for cost in COSTS:
        made[f"accuracy_over_{cost.key}"] = accuracy_over(material, cost, styles)
    made["accuracy_of_heads"] = accuracy_of_heads(material, styles)
    made["accuracy_of_clients"] = accuracy_of_clients(material, styles)
    made |= cluster_figures(material.groups)
    return {key: figure for key, figure in made.items() if figure is not None}


PICTURES = (
    "accuracy_over_size",
    *(f"accuracy_over_{cost.key}" for cost in COSTS),
    "accuracy_of_heads",
    "accuracy_of_clients",
    "cluster_members",
    "cluster_accuracy",
    "cluster_tree",
)
"""Names of all pictures' files that a report may have, without suffix."""
