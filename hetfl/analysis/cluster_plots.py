"""Figures of the clusters of a run: the cluster of each client over rounds, and the splits of clusters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hetfl.analysis.clusters import ClusterSplit, assignments, has_splits, load_clusters, splits_of
from hetfl.analysis.figures import new_figure
from hetfl.analysis.pictures import save_figure
from hetfl.analysis.runs import read_metrics
from hetfl.analysis.theme import FONT_POINTS, GREY, NOTHING, SMALL, TINY, cluster_colours, plain, rounds_axis
from hetfl.errors import ConfigurationError
from hetfl.runs.headline import headline_in

ROW_INCHES = 0.13
"""Height of the row of a client, in inches."""
HIGHEST = 8.0
"""Maximum height of all rows together, in inches."""


def plot_assignments(table: pd.DataFrame, rounds: int) -> Figure:
    """Draw the cluster of every client over the rounds; clients of the same cluster are neighbours.

    Args:
        table: the result of :func:`load_clusters`.
        rounds: number of rounds.
    """
    figure, axes = new_figure(
        "Cluster of each client",
        "Look for rows that change colour late: clients between two clusters. Grey: no cluster yet.",
        height=assignments_height(table),
    )
    draw_assignments(axes[0, 0], table, rounds)
    return figure


def assignments_height(table: pd.DataFrame) -> float:
    """Return the height of the axes with the cluster of every client, in inches."""
    return max(1.6, 0.9 + min(ROW_INCHES * (int(table["client"].max()) + 1), HIGHEST))


def draw_assignments(ax: Axes, table: pd.DataFrame, rounds: int) -> None:
    """Draw the cluster of every client over the rounds into axes; see :func:`plot_assignments`."""
    clusters_NR = assignments(table, rounds)
    order = np.lexsort((np.arange(len(clusters_NR)), clusters_NR[:, -1]))
    colours = cluster_colours(int(clusters_NR.max()) + 1)
    ax.imshow(
        clusters_NR[order],
        cmap=ListedColormap([to_rgba(NOTHING), *colours]),
        vmin=-1.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, rounds + 0.5, len(order) - 0.5, -0.5),  # the first column is after one round
    )
    few = len(order) <= 100
    ax.set_yticks(range(len(order)) if few else [], [str(client) for client in order] if few else [])
    ax.tick_params(axis="y", length=0, labelsize=TINY)
    rounds_axis(ax)
    ax.set_ylabel("Client")
    ax.spines[:].set_visible(False)
    last = clusters_NR[:, -1]
    handles = [Patch(color=colour, label=f"{c}: {int((last == c).sum())}") for c, colour in enumerate(colours)]
    legend = ax.legend(
        handles=handles, title="cluster: clients", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    legend.get_title().set_fontsize(FONT_POINTS)
    for text in legend.get_texts():
        text.set_fontsize(FONT_POINTS)


def plot_cluster_tree(table: pd.DataFrame, rounds: int) -> Figure:
    """Draw how clusters split: a line per cluster over the rounds, with its number of clients.

    Args:
        table: the result of :func:`load_clusters`.
        rounds: number of rounds.

    Raises:
        ConfigurationError: the table has no split.
    """
    splits = splits_of(table)
    if not splits:
        raise ConfigurationError("Expected clusters that were split but got none")
    figure, axes = new_figure(
        "How clusters split",
        "Look for the round of each fork and the numbers of clients: clusters of a late fork train for few rounds.",
        height=tree_height(splits),
    )
    draw_tree(axes[0, 0], table, splits, rounds)
    return figure


def tree_height(splits: Sequence[ClusterSplit]) -> float:
    """Return the height of the axes with the tree of clusters, in inches."""
    return max(1.4, 0.9 + 0.42 * (len(splits) + 1))


def draw_tree(ax: Axes, table: pd.DataFrame, splits: Sequence[ClusterSplit], rounds: int) -> None:
    """Draw the splits of clusters into axes; see :func:`plot_cluster_tree`."""
    order = [0]
    for split in splits:  # a child is right below its parent, above earlier children
        order.insert(order.index(split.parent) + 1, split.child)
    clusters_NR, colours = assignments(table, rounds), cluster_colours(len(order))
    begins = {0: 0, **{split.child: split.round + 1 for split in splits}}  # a cluster splits at the end of a round
    for row, cluster in enumerate(order):
        changes = [begins[cluster], *(split.round + 1 for split in splits if split.parent == cluster), rounds]
        ax.plot([changes[0], rounds], [row, row], color=colours[cluster], lw=2.5, solid_capstyle="butt")
        for start, end in itertools.pairwise(changes):
            size = int((clusters_NR[:, max(start - 1, 0)] == cluster).sum())
            text = f"{size} clients" if end == rounds else str(size)
            ax.annotate(text, (start, row), (4, 3), textcoords="offset points", fontsize=FONT_POINTS, color=GREY)
    for split in splits:
        top, bottom = order.index(split.parent), order.index(split.child)
        ax.plot([split.round + 1] * 2, [top, bottom], color=colours[split.child], lw=1.0)
    ax.set_yticks(range(len(order)), [f"cluster {cluster}" for cluster in order])
    ax.tick_params(axis="y", labelsize=SMALL)
    ax.set_ylim(len(order) - 0.5, -0.7)
    ax.set_xlim(0, rounds)
    rounds_axis(ax)
    plain(ax, "x")


def plot_clusters(folder: str | Path) -> list[Path]:
    """Write the figures of the clusters of a run into its folder ``plots``; return the files, none without clusters.

    Raises:
        ConfigurationError: ``clusters.csv`` or ``metrics.csv`` of the run cannot be read.
    """
    folder = Path(folder)
    if not (folder / "clusters.csv").is_file():
        return []
    table = load_clusters(folder)
    rounds = int(read_metrics(folder / "metrics.csv", headline_in(folder))["step"].max()) + 1
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    files = save_figure(plot_assignments(table, rounds), target, "clusters")
    if has_splits(folder) and splits_of(table):
        files += save_figure(plot_cluster_tree(table, rounds), target, "cluster_tree")
    return files
