"""The figure of the levels that an assignment drew as it learnt: per client over rounds, and per kind of device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hetfl.analysis.figures import client_rows, level_legend, new_figure
from hetfl.analysis.pictures import ASSIGNMENT_TABLE, save_figure
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.tables import read_own_table
from hetfl.analysis.theme import GREY, TINY, Colour, level_colours, mark_lost, rounds_axis
from hetfl.errors import ConfigurationError

COLUMNS = ["round", "client", "level", "device", "seconds", "late", "value", "reward"]
NUMBERS = ["round", "client", "late", "value", "reward"]
"""Columns that have a number in every row."""
THIRDS = ("first third", "second third", "last third")
ROW_INCHES, HIGHEST = 0.13, 7.0
"""Height of the row of a client, and the largest height of all rows together, in inches."""


def load_assignment(folder: str | Path) -> pd.DataFrame:
    """Return ``assignment.csv`` of a run: a row per round and client that reported or was late.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """

    def fits(table: pd.DataFrame) -> bool:
        numbers = table[NUMBERS].to_numpy(np.float64)
        return bool(np.isfinite(numbers).all() and (numbers >= 0).all())

    options = {"dtype": {"level": str, "device": str}, "keep_default_na": False, "na_values": {"seconds": [""]}}
    path, whose = Path(folder) / ASSIGNMENT_TABLE, "whose assignment learns"
    return read_own_table(path, COLUMNS, fits, whose, "numbers from 0", **options)


def plot_drawn_levels(table: pd.DataFrame, levels: Sequence[str]) -> Figure:
    """Draw the level of every client over the rounds, and the shares of levels per kind of device in thirds of the run.

    Args:
        table: the result of :func:`load_assignment`, with at least one row.
        levels: names of the levels, the largest first.

    Raises:
        ConfigurationError: the table has no rows, or a level that is not among ``levels``.
    """
    unknown = set(table["level"]) - set(levels)
    if unknown or not len(table):
        raise ConfigurationError(
            f"Expected draws of levels {list(levels)} but got {sorted(unknown) if unknown else 'none'}"
        )
    devices = _devices(table)
    clients = [client for device in devices for client in sorted(set(table.loc[table["device"] == device, "client"]))]
    figure, axes = new_figure(
        "Level of each client",
        "Slow devices are at the top. Look for colours that settle from left to right, and for slow devices with "
        "the colours of small levels. Cross: the update was late. White: the client did not take part, "
        "or failed.",
        width=9.0,
        height=max(2.4, 0.9 + min(ROW_INCHES * len(clients), HIGHEST)),
        columns=2,
    )
    colours = level_colours(levels)
    _draw_clients(axes[0, 0], table, clients, colours)
    sizes = table.groupby("device")["client"].nunique()
    for border in np.cumsum([sizes[device] for device in devices])[:-1]:
        axes[0, 0].axhline(border - 0.5, color=GREY, linewidth=0.8)
    _draw_devices(axes[0, 1], table, devices, colours)
    return figure


def _devices(table: pd.DataFrame) -> list[str]:
    """Return the kinds of devices, the slowest first, by their seconds relative to those of others at equal levels."""
    speed = table.groupby("level")["seconds"].transform("median")
    slowness = (table["seconds"] / speed).groupby(table["device"]).median()
    return [str(device) for device in slowness.sort_values(ascending=False, kind="stable").index]


def _draw_clients(ax: Axes, table: pd.DataFrame, clients: Sequence[int], colours: dict[str, Colour]) -> None:
    levels, row_of = list(colours), {client: row for row, client in enumerate(clients)}
    rounds = int(table["round"].max()) + 1
    level_SR = np.full((len(clients), rounds), -1)
    rows, columns = table["client"].map(row_of).to_numpy(), table["round"].to_numpy()
    level_SR[rows, columns] = table["level"].map(levels.index).to_numpy()
    ax.imshow(
        level_SR,
        cmap=ListedColormap([(1.0, 1.0, 1.0, 1.0), *colours.values()]),
        vmin=-1.5,
        vmax=len(levels) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, rounds + 0.5, len(clients) - 0.5, -0.5),
    )
    late = table["late"].to_numpy() == 1
    mark_lost(ax, columns[late] + 1, rows[late])
    client_rows(ax, clients)
    rounds_axis(ax)
    ax.spines[:].set_color("0.85")


def _draw_devices(ax: Axes, table: pd.DataFrame, devices: Sequence[str], colours: dict[str, Colour]) -> None:
    third = np.minimum(3 * table["round"] // (table["round"].max() + 1), 2)
    ticks, names = [], []
    for row, device in enumerate(devices):
        for part, name in enumerate(THIRDS):
            drawn = table.loc[(table["device"] == device) & (third == part), "level"]
            place, left = 4 * row + part, 0.0
            for level, colour in colours.items():
                share = 100 * float((drawn == level).mean()) if len(drawn) else 0.0
                ax.barh(place, share, left=left, color=colour, height=0.9)
                left += share
            ticks.append(place)
            names.append(f"{device}, {name}" if part == 0 else name)
    ax.set_yticks(ticks, names)
    ax.set_ylim(4 * len(devices) - 1.4, -0.6)
    ax.set_xlim(0, 100)
    ax.tick_params(axis="y", length=0, labelsize=TINY, color=GREY)
    ax.set_xlabel("Share of the draws (%)")
    ax.spines[["top", "right", "left"]].set_visible(False)
    level_legend(ax, colours)


def level_names(run: Run, table: pd.DataFrame) -> list[str]:
    """Return the names of a run's levels, the largest first; without ``levels.csv``, those in a table, by name."""
    if run.level_table is None:
        return sorted(set(table["level"]))
    ordered = run.level_table.sort_values("parameters", ascending=False, kind="stable")
    return [str(level) for level in ordered["level"]]


def draw_assignment(folder: str | Path) -> list[Path]:
    """Write the figure of a run whose assignment learnt into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: a table of the run can't be read.
    """
    if not (Path(folder) / ASSIGNMENT_TABLE).is_file():
        return []
    table = load_assignment(folder)
    if not len(table):
        return []
    run = load_run(folder)
    target = run.folder / "plots"
    target.mkdir(exist_ok=True)
    return save_figure(plot_drawn_levels(table, level_names(run, table)), target, "assignment")
