"""The clusters in a report, for runs with several global models: members, splits and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetfl.analysis import Run
from hetfl.analysis.cluster_plots import assignments_height, draw_assignments, draw_tree, tree_height
from hetfl.analysis.clusters import ClusterSplit, assignments, has_splits, splits_of
from hetfl.analysis.theme import DASHES, MARKERS, SMALL, Style, cluster_colours, text_sizes
from hetfl.report.checks import rounds_done
from hetfl.report.document import Cell, Table
from hetfl.report.figures import WIDTH, drawing_of
from hetfl.report.groups import Group, seed_of
from hetfl.report.panels import Axis, Drawing, Panel
from hetfl.report.series import ROUNDS, Band, final_amount
from hetfl.report.tables import NONE

MOST = 6
"""Maximum number of clusters that are listed one by one; of more, a table has the smallest and the largest number."""


@dataclass(frozen=True)
class ClusteredRun:
    """A run with clusters.

    Attributes:
        group: name of the group of the run.
        run: the run.
        table: ``clusters.csv`` of the run.
    """

    group: str
    run: Run
    table: pd.DataFrame

    @property
    def title(self) -> str:
        """Title of the run in figures."""
        return f"{self.group}, seed {seed_of(self.run)}"

    @property
    def rounds(self) -> int:
        """Number of rounds done."""
        return rounds_done(self.run)

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """The cluster of each client after each round, shape (N, rounds); -1 before its first cluster."""
        return assignments(self.table, self.rounds)

    @cached_property
    def splits(self) -> list[ClusterSplit]:
        """The splits of clusters; empty for a run without splits."""
        return splits_of(self.table) if has_splits(self.run.folder) else []

    @cached_property
    def count(self) -> int:
        """Number of models at the end, including those of empty clusters."""
        return max(int(self.members.max()) + 1, int(final_amount(self.run, "cluster/count") or 0))

    @cached_property
    def scores(self) -> dict[int, Band]:
        """The validation headline over rounds, by cluster, for clusters with a score."""
        rounds, bands = np.asarray(self.run.series("step"), dtype=np.float64) + 1, {}
        for cluster in range(self.count):
            column = self.run.headline.cluster(cluster)
            if column in self.run.metrics.columns:
                score = np.asarray(self.run.series(column), dtype=np.float64)
                reported = ~np.isnan(score)
                if reported.any():
                    mean = score[reported]
                    bands[cluster] = Band(rounds[reported], mean, mean, mean, n=1)
        return bands


def clustered(groups: Sequence[Group]) -> list[ClusteredRun]:
    """Return the runs that have a ``clusters.csv``."""
    pairs = [(group.name, run) for group in groups for run in group.runs]
    return [ClusteredRun(name, run, run.clusters) for name, run in pairs if run.clusters is not None]


def cluster_table(runs: Sequence[ClusteredRun]) -> Table:
    """Return a table with a row per run: clusters, their clients and scores, and changes of clusters.

    Args:
        runs: at least one run.
    """
    headline = runs[0].run.headline
    rows: list[list[str | Cell]] = []
    for each in runs:
        before_NR, after_NR = each.members[:, :-1], each.members[:, 1:]
        moves_NR = (before_NR != after_NR) & (before_NR >= 0)
        when = np.flatnonzero(moves_NR.any(axis=0)) + 2  # rounds count from 1, and column 0 is a move in round 2
        changes = Cell(str(int(moves_NR.sum())), f"the last in round {when[-1]}" if len(when) else "")
        sizes = [float((each.members[:, -1] == cluster).sum()) for cluster in range(each.count)]
        ends = [
            float(each.scores[cluster].mean[-1]) if cluster in each.scores else None for cluster in range(each.count)
        ]
        numbers = [_all_or_ends(sizes, "{:.0f}".format), _all_or_ends(ends, headline.shown)]
        rows.append([each.group, seed_of(each.run), str(each.count), *numbers, changes])
    return Table(
        f"Clusters after the last round, by number: clients, and the last validation {headline.words}.",
        ["group", "seed", "clusters", "clients", headline.words, "changes of cluster"],
        rows,
    )


def _all_or_ends(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    """Return all values as text, or only the smallest and the largest of more than :data:`MOST`."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    if len(values) > MOST:
        return f"{write(min(known))} to {write(max(known))}"
    return ", ".join(NONE if value is None else write(value) for value in values)


def cluster_figures(groups: Sequence[Group]) -> dict[str, Drawing | None]:
    """Return figures of the first run with clusters of each group, by file name; at least one group has such a run."""
    runs = list({each.group: each for each in reversed(clustered(groups))}.values())[::-1]
    split = [each for each in runs if each.splits]
    return {
        "cluster_members": _stacked(
            runs,
            [assignments_height(each.table) for each in runs],
            lambda ax, each: draw_assignments(ax, each.table, each.rounds),
        ),
        f"cluster_{groups[0].headline.name}": _scores(runs),
        "cluster_tree": _stacked(
            split,
            [tree_height(each.splits) for each in split],
            lambda ax, each: draw_tree(ax, each.table, each.splits, each.rounds),
        ),
    }


def _scores(runs: Sequence[ClusteredRun]) -> Drawing | None:
    """Draw the validation headline of every cluster over rounds, a panel per run, in the colours of other figures."""
    numbers = sorted({cluster for each in runs for cluster in each.scores})
    if not numbers:
        return None
    colours = cluster_colours(max(each.count for each in runs))
    styles = {
        f"cluster {cluster}": Style(
            to_hex(colours[cluster]), DASHES[cluster % len(DASHES)], MARKERS[cluster % len(MARKERS)]
        )
        for cluster in numbers
    }
    panels = [
        Panel(each.title, {f"cluster {cluster}": band for cluster, band in each.scores.items()})
        for each in runs
        if each.scores
    ]
    axis = Axis(ROUNDS.axis, rounds=True).of(runs[0].run.headline, runs[0].run.chance)
    return drawing_of(panels, axis, styles)


def _stacked(
    runs: Sequence[ClusteredRun], heights: Sequence[float], draw: Callable[[Axes, ClusteredRun], None]
) -> Drawing | None:
    """Draw one axes per run, from top to bottom."""
    if not runs:
        return None
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(runs), 1, squeeze=False, height_ratios=list(heights))
    for ax, each in zip(axes[:, 0], runs, strict=True):
        draw(ax, each)
        ax.set_title(each.title, loc="left", fontsize=SMALL, pad=4, parse_math=False)
        text_sizes(ax)
    columns = list(runs[0].table.columns)
    cells = [[each.group, seed_of(each.run), *map(str, row)] for each in runs for row in each.table.to_numpy().tolist()]
    return Drawing(figure, [["group", "seed", *columns], *cells])
