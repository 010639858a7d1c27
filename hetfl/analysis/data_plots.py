"""The figure of the partition: the labels of each client, and its number of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hetfl.analysis.figures import new_figure
from hetfl.analysis.pictures import save_figure
from hetfl.analysis.theme import FONT_POINTS, GREY, SMALL, level_colours, plain
from hetfl.data.mix import evenly_spaced
from hetfl.files import make_folder, write_whole

MOST_CLIENTS = 50
"""Maximum number of rows; of more clients the figure shows this number at even distances."""
MOST_KINDS = 6
"""Maximum number of kinds of inputs that have different colours."""


def plot_labels(clients: pd.DataFrame) -> Figure:
    """Draw the number of targets of each label at each client as dots, and the number of samples as bars.

    Without labels, or with too many labels for a table, there are only bars.

    Args:
        clients: the result of :func:`hetfl.data.client_table`.
    """
    classes = [name for name in clients.columns if name.startswith("class_")]
    rows = clients.iloc[evenly_spaced(len(clients), MOST_CLIENTS)]
    some = "" if len(rows) == len(clients) else f", {len(rows)} of {len(clients):,} clients at even distances"
    row_inches = float(np.clip(9 / len(rows), 0.15, 0.3))
    if not classes:
        return _plot_sizes(rows, f"Samples of each client{some}", row_inches)
    column_inches = float(np.clip(6.5 / len(classes), 0.07, 0.3))
    dots, bars = max(column_inches * len(classes), 1.5), 2.0
    counts_NK, colours = rows[classes].to_numpy(dtype=np.float64), _colours(rows)
    largest = counts_NK.max()
    figure, axes = new_figure(
        f"Labels of each client{some}",
        f"The area of a dot is a number of training samples, {largest:,.0f} for the largest. Look for gaps in a row "
        "(classes that the client does not have) and for bars of different length.",
        width=dots + bars + 1.0,
        height=row_inches * len(rows) + 0.9,
        columns=2,
    )
    left, right = axes[0]
    left.get_gridspec().set_width_ratios([dots, bars])
    # With many classes the largest dots are wider than a column, because neighbours are seldom both large.
    _draw_dots(left, counts_NK, colours, points=0.95 * 72 * float(np.sqrt(row_inches * column_inches)))
    _number_rows(left, rows["client"].tolist(), row_inches)
    _draw_sizes(right, rows, colours)
    right.set_yticks([])
    for ax in (left, right):
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_sizes(rows: pd.DataFrame, title: str, row_inches: float) -> Figure:
    """Draw the number of samples of each client."""
    note = "Look for bars of different length."
    figure, axes = new_figure(title, note, width=5.0, height=row_inches * len(rows) + 0.9)
    ax = axes[0][0]
    _number_rows(ax, rows["client"].tolist(), row_inches)
    _draw_sizes(ax, rows, _colours(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_sizes(ax: Axes, rows: pd.DataFrame, colours: list[tuple[float, float, float, float] | str]) -> None:
    """Draw a bar per row, whose length is the number of training samples."""
    ax.barh(range(len(rows)), rows["train_samples"], color=colours, height=0.75)
    ax.set_xlabel("Training samples")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    plain(ax, "x")
    if "change" in rows and rows["change"].nunique() <= MOST_KINDS:
        _name_kinds(ax, dict(zip(rows["change"], colours, strict=True)))


def write_labels(clients: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the figure as ``labels.png`` and ``labels.svg`` and the whole table as ``clients.csv``; return the files.

    Raises:
        ConfigurationError: the folder cannot be made, because a file has its name.
        OSError: a file cannot be written; the message names the file.
    """
    make_folder(folder, "into (--out)")
    table = folder / "clients.csv"
    write_whole(table, clients.to_csv(index=False, lineterminator="\n").encode())
    return [*save_figure(plot_labels(clients), folder, "labels"), table]


def _colours(rows: pd.DataFrame) -> list[tuple[float, float, float, float] | str]:
    if "change" not in rows or rows["change"].nunique() > MOST_KINDS:
        return [GREY] * len(rows)
    shades = level_colours(sorted(rows["change"].unique(), key=_in_order))
    return [shades[kind] for kind in rows["change"]]


def _in_order(kind: str) -> tuple[int, str]:
    """Return a sort key that puts 90° before 180°."""
    return len(kind), kind


def _draw_dots(
    ax: Axes, counts_NK: NDArray[np.float64], colours: list[tuple[float, float, float, float] | str], points: float
) -> None:
    """Draw dots whose area is the count; the largest is ``points`` wide."""
    row, column = counts_NK.nonzero()
    sizes = points**2 * counts_NK[row, column] / counts_NK.max()
    ax.scatter(column, row, s=sizes, c=[colours[number] for number in row], linewidths=0)
    ax.set_xlim(-0.7, counts_NK.shape[1] - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10 if counts_NK.shape[1] > 20 else 20, integer=True))
    ax.set_xlabel("Class")
    plain(ax, "both")


def _number_rows(ax: Axes, clients: list[int], row_inches: float) -> None:
    """Write the client number of every row, or of every second row if rows are close."""
    step = 1 if row_inches >= 1.1 * FONT_POINTS / 72 else 2
    ax.set_yticks(range(0, len(clients), step), [str(client) for client in clients[::step]])
    ax.set_ylabel("Client")


def _name_kinds(ax: Axes, kinds: dict[str, tuple[float, float, float, float] | str]) -> None:
    """Draw the legend of the kinds of inputs."""
    handles = [ax.barh([0], [0], color=kinds[kind], label=kind) for kind in sorted(kinds, key=_in_order)]
    ax.legend(
        handles=handles, title="change", fontsize=SMALL, title_fontsize=SMALL, frameon=False,
        labelcolor=GREY, loc="lower left", bbox_to_anchor=(1.0, 0.0),
    )  # fmt: skip
