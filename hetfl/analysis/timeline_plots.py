"""The figure of rounds in which clients do not wait for each other: who worked when, at which level, and how stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetfl.analysis.assignment_plots import HIGHEST, ROW_INCHES, level_names
from hetfl.analysis.figures import client_rows, level_legend, new_figure
from hetfl.analysis.pictures import TIMELINE_TABLE, save_figure
from hetfl.analysis.runs import load_run
from hetfl.analysis.tables import read_own_table
from hetfl.analysis.theme import GREY, TINY, Colour, level_colours, mark_lost
from hetfl.errors import ConfigurationError
from hetfl.trainer.writing import TIMELINE_COLUMNS

LATEST = 200
"""Number of arrivals that the figure shows."""


def load_timeline(folder: str | Path) -> pd.DataFrame:
    """Return ``timeline.csv`` of a run: a row per arrival of an update, and per client that was lost.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """

    def fits(table: pd.DataFrame) -> bool:
        numbers = table[["round", "client", "taken", "start", "end", "accepted"]].to_numpy(np.float64)
        accepted = table["accepted"] == 1
        stale = table[["staleness", "largest_staleness"]].to_numpy(np.float64)
        known = np.isfinite(stale).all(1) == accepted.to_numpy()
        ordered = (table["taken"] <= table["round"]) & (table["start"] <= table["end"])
        return bool(np.isfinite(numbers).all() and (numbers >= 0).all() and known.all() and ordered.all())

    options = {"dtype": {"level": str}, "keep_default_na": False}
    options["na_values"] = {"staleness": [""], "largest_staleness": [""]}
    path, content = Path(folder) / TIMELINE_TABLE, "numbers from 0, and starts before ends"
    return read_own_table(path, TIMELINE_COLUMNS, fits, "whose clients do not wait for each other", content, **options)


def plot_timeline(table: pd.DataFrame, levels: Sequence[str]) -> Figure:
    """Draw the work of clients over the simulated time, and the staleness of the updates of each level.

    Args:
        table: the result of :func:`load_timeline`, with at least one row.
        levels: names of the levels, the largest first.

    Raises:
        ConfigurationError: the table has no rows, or a level that is not among ``levels``.
    """
    unknown = set(table["level"]) - set(levels)
    if unknown or not len(table):
        got = sorted(unknown) if unknown else "none"
        raise ConfigurationError(f"Expected arrivals of levels {list(levels)} but got {got}")
    shown = table.iloc[-LATEST:]
    clients = sorted(set(shown["client"]))
    figure, axes = new_figure(
        "Work of clients over the simulated time",
        f"The last {len(shown)} arrivals; a bar begins when a client takes the model and ends when its update arrives. "
        "Vertical lines: the server steps. Cross: the client was lost. Look for long bars of "
        "large levels: their updates arrive last and are the most stale.",
        width=9.0,
        height=max(2.4, 0.9 + min(ROW_INCHES * len(clients), HIGHEST)),
        columns=2,
    )
    colours = level_colours(levels)
    _draw_work(axes[0, 0], shown, clients, colours)
    _draw_staleness(axes[0, 1], table[table["accepted"] == 1], colours)
    return figure


def _draw_work(ax: Axes, table: pd.DataFrame, clients: Sequence[int], colours: dict[str, Colour]) -> None:
    rows = table["client"].map({client: row for row, client in enumerate(clients)})
    for step in table.groupby("round")["end"].max():
        ax.axvline(step, color="0.85", linewidth=0.5, zorder=0)
    lengths = table["end"] - table["start"]
    ax.barh(rows, lengths, left=table["start"], color=[colours[level] for level in table["level"]], height=0.8)
    lost = table["accepted"] == 0
    mark_lost(ax, table["end"][lost], rows[lost])
    client_rows(ax, clients)
    ax.set_ylim(len(clients) - 0.5, -0.5)
    ax.set_xlabel("Simulated time (s)")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_staleness(ax: Axes, table: pd.DataFrame, colours: dict[str, Colour]) -> None:
    means = table.groupby("level")["staleness"].mean()
    counts = table.groupby("level").size()
    for row, (level, colour) in enumerate(colours.items()):
        ax.barh(row, float(means.get(level, 0.0)), color=colour, height=0.8)
    names = [f"{level}, {int(counts.get(level, 0))}" for level in colours]
    ax.set_yticks(range(len(colours)), names)
    ax.set_ylabel("Level, number of updates")
    ax.set_ylim(len(colours) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize=TINY, color=GREY)
    ax.set_xlabel("Mean staleness of an update's entries (server steps)")
    ax.spines[["top", "right", "left"]].set_visible(False)
    level_legend(ax, colours)


def draw_timeline(folder: str | Path) -> list[Path]:
    """Write the figure of a run whose clients do not wait for each other into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: a table of the run can't be read.
    """
    if not (Path(folder) / TIMELINE_TABLE).is_file():
        return []
    table = load_timeline(folder)
    if not len(table):
        return []
    run = load_run(folder)
    target = run.folder / "plots"
    target.mkdir(exist_ok=True)
    return save_figure(plot_timeline(table, level_names(run, table)), target, "timeline")
