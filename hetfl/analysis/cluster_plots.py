"""Figures of a run's clusters: who was in which one when, and how they split."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hetfl.analysis.figures import Colour, new_figure, plain
from hetfl.analysis.plots import FONT_POINTS, GREY, save_figure
from hetfl.errors import ConfigurationError

COLUMNS = ["round", "client", "cluster"]
ROW_INCHES = 0.13
"""Height of a client's row."""
NOBODY = (0.93, 0.93, 0.93, 1.0)
"""The colour of a client that has no cluster yet."""


@dataclass(frozen=True)
class Split:
    """A cluster that became two.

    Attributes:
        round: at the end of which it was split.
        parent: its number, which one part keeps.
        child: the number of the other part.
    """

    round: int
    parent: int
    child: int


def load_clusters(folder: str | Path) -> pd.DataFrame:
    """Return a run's ``clusters.csv``: a row for every time that a client's cluster changed.

    Raises:
        ConfigurationError: there is no such file, or it is another table.
    """
    path = Path(folder) / "clusters.csv"
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run with model.clustering, but got no such file")
    table = pd.read_csv(path)
    if list(table.columns) != COLUMNS or not len(table) or not all(kind.kind == "i" for kind in table.dtypes):
        raise ConfigurationError(f"Expected whole numbers in columns {', '.join(COLUMNS)} of {path} but got others")
    return table


def assignments(table: pd.DataFrame, rounds: int) -> NDArray[np.int64]:
    """Return each client's cluster after each round, shape (N, rounds), -1 while it has none.

    Args:
        table: what :func:`load_clusters` returned.
        rounds: number of rounds.
    """
    found = np.full((int(table["client"].max()) + 1, rounds), -1, dtype=np.int64)
    for round, client, cluster in table[COLUMNS].itertuples(index=False):
        found[client, round:] = cluster
    return found


def splits_of(table: pd.DataFrame) -> list[Split]:
    """Return the splits that a table tells of; none if clients changed clusters in another way."""
    present: dict[int, int] = {}
    splits: dict[int, Split] = {}
    for round, client, cluster in table[COLUMNS].itertuples(index=False):
        parent = present.get(client)
        present[client] = cluster
        if parent is None and cluster == 0:
            continue
        if parent is None or cluster == 0:
            return []
        split = Split(round, parent, cluster)
        if splits.setdefault(cluster, split) != split:
            return []
    return list(splits.values())


def plot_assignments(table: pd.DataFrame, rounds: int) -> Figure:
    """Draw every client's cluster over the rounds, clients of one cluster side by side.

    Args:
        table: what :func:`load_clusters` returned.
        rounds: number of rounds.
    """
    clusters_NR = assignments(table, rounds)
    order = np.lexsort((np.arange(len(clusters_NR)), clusters_NR[:, -1]))
    count = int(clusters_NR.max()) + 1
    figure, axes = new_figure(
        "Who is in which cluster",
        "Look for rows that change colour late: clients between two clusters. Grey: not asked yet.",
        height=max(1.6, 0.9 + ROW_INCHES * len(order)),
    )
    ax, colours = axes[0, 0], _colours(count)
    ax.imshow(
        clusters_NR[order],
        cmap=ListedColormap([NOBODY, *colours]),
        vmin=-1.5,
        vmax=count - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    few = len(order) <= 100
    ax.set_yticks(range(len(order)) if few else [], [str(client) for client in order] if few else [])
    ax.tick_params(axis="y", length=0, labelsize=FONT_POINTS - 3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("round")
    ax.set_ylabel("client")
    ax.spines[:].set_visible(False)
    last = clusters_NR[:, -1]
    handles = [Patch(color=colour, label=f"{c}: {int((last == c).sum())}") for c, colour in enumerate(colours)]
    legend = ax.legend(
        handles=handles, title="cluster: clients", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    legend.get_title().set_fontsize(FONT_POINTS)
    for text in legend.get_texts():
        text.set_fontsize(FONT_POINTS)
    return figure


def plot_cluster_tree(table: pd.DataFrame, rounds: int) -> Figure:
    """Draw how clusters split: a line per cluster over the rounds, with the number of its clients.

    Args:
        table: what :func:`load_clusters` returned.
        rounds: number of rounds.

    Raises:
        ConfigurationError: the table tells of no split.
    """
    splits = splits_of(table)
    if not splits:
        raise ConfigurationError("Expected clusters that were split but got none")
    order = [0]
    for split in splits:  # a child lies right below its parent and what came out of it before
        order.insert(order.index(split.parent) + 1, split.child)
    clusters_NR, colours = assignments(table, rounds), _colours(len(order))
    figure, axes = new_figure(
        "How clusters split",
        "Look for when a line forks, and into how many clients: a fork late in the run leaves its parts little time.",
        height=max(1.4, 0.9 + 0.42 * len(order)),
    )
    ax = axes[0, 0]
    begins = {0: 0, **{split.child: split.round for split in splits}}
    for row, cluster in enumerate(order):
        changes = [begins[cluster], *(split.round for split in splits if split.parent == cluster), rounds]
        ax.plot([changes[0], rounds], [row, row], color=colours[cluster], lw=2.5, solid_capstyle="butt")
        for start, end in itertools.pairwise(changes):
            size = int((clusters_NR[:, min(start, rounds - 1)] == cluster).sum())
            text = f"{size} clients" if end == rounds else str(size)
            ax.annotate(text, (start, row), (4, 3), textcoords="offset points", fontsize=FONT_POINTS, color=GREY)
    for split in splits:
        top, bottom = order.index(split.parent), order.index(split.child)
        ax.plot([split.round] * 2, [top, bottom], color=colours[split.child], lw=1.0)
    ax.set_yticks(range(len(order)), [f"cluster {cluster}" for cluster in order])
    ax.set_ylim(len(order) - 0.5, -0.7)
    ax.set_xlim(0, rounds)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("round")
    plain(ax, "x")
    return figure


def plot_clusters(folder: str | Path) -> list[Path]:
    """Write the figures of a run that has ``clusters.csv`` into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: the table or the run's ``metrics.csv`` can't be read.
    """
    folder = Path(folder)
    if not (folder / "clusters.csv").is_file():
        return []
    table = load_clusters(folder)
    rounds = int(pd.read_csv(folder / "metrics.csv")["step"].max()) + 1
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    files = save_figure(plot_assignments(table, rounds), target, "clusters")
    if splits_of(table):
        files += save_figure(plot_cluster_tree(table, rounds), target, "cluster_tree")
    return files


def _colours(count: int) -> list[Colour]:
    """Return a colour per cluster: of ten for ten or fewer, else along a map."""
    if count <= 10:
        return [colormaps["tab10"](cluster) for cluster in range(count)]
    return [colormaps["turbo"](cluster / (count - 1)) for cluster in range(count)]
