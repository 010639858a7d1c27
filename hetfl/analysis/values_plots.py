"""The figure of values of clients: over rounds, and against what is known of the clients' data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hetfl.analysis.figures import new_figure
from hetfl.analysis.pictures import had_values, save_figure
from hetfl.analysis.theme import MAP, SMALL, TINY, Colour, plain
from hetfl.analysis.values import (
    LEFT_OUT,
    late_values,
    load_client_data,
    load_values,
    rank_correlation,
    values_by_round,
)

MOST = 6
"""Largest number of measures in a figure."""
AGAINST = {
    "samples": "Training samples",
    "noise": "Noise of the samples",
    "divergence": "Distance of the labels from all",
}
"""Columns of ``client_data.csv``, and the names of axes."""
ROW_INCHES = 1.75


def measures_of(table: pd.DataFrame) -> list[str]:
    """Return the names of at most :data:`MOST` measures of worth, in the order of the file."""
    return [str(name) for name in dict.fromkeys(table["measure"]) if name != LEFT_OUT][:MOST]


def plot_values(table: pd.DataFrame, clients: pd.DataFrame, measures: Sequence[str] | None = None) -> Figure:
    """Draw a row for each measure: values over rounds, then late values against samples, noise and divergence.

    Args:
        table: the result of :func:`hetfl.analysis.load_values`.
        clients: the result of :func:`hetfl.analysis.load_client_data`.
        measures: names of measures; None: the first six of the table.

    Raises:
        ConfigurationError: the table has no such measure.
    """
    names = measures_of(table) if measures is None else list(measures)
    noisy = bool(clients["noise"].nunique() > 1)
    figure, axes = new_figure(
        "What clients are worth",
        f"A line or a dot is a client{'; the darker, the noisier' if noisy else ''}. Left: look for lines that keep "
        "their order. Right: the mean over the last third of the rounds. ρ is Spearman's rank correlation; a measure "
        "that notices noise has a ρ near -1 in the column of noise.",
        width=9.4,
        height=ROW_INCHES * len(names) + 0.3,
        rows=len(names),
        columns=1 + len(AGAINST),
    )
    shades = _shades(clients["noise"])
    for row, name in enumerate(names):
        left, *others = cast(list[Axes], list(axes[row]))
        _draw_lines(left, values_by_round(table, name), shades)
        left.set_ylabel(name, fontsize=SMALL)
        for ax, (column, label) in zip(others, AGAINST.items(), strict=True):
            ax.sharey(left)
            _draw_dots(ax, late_values(table, name), clients[column], shades)
            ax.set_xlabel(label if row == len(names) - 1 else "", fontsize=SMALL)
        left.set_xlabel("Rounds done" if row == len(names) - 1 else "", fontsize=SMALL)
        for ax in (left, *others):
            plain(ax)
            ax.tick_params(labelsize=TINY)
    return figure


def _shades(noise: pd.Series[float]) -> dict[int, Colour]:
    """Return a colour per client, the darker the noisier; one colour if all are alike."""
    low, span = float(noise.min()), float(noise.max() - noise.min())
    ramp = matplotlib.colormaps[f"{MAP}_r"]
    pairs = zip(noise.index.to_numpy(np.int64).tolist(), noise.to_numpy(np.float64).tolist(), strict=True)
    return {client: ramp(0.45 + 0.55 * (amount - low) / span if span else 0.6) for client, amount in pairs}


def _draw_lines(ax: Axes, values: pd.DataFrame, shades: dict[int, Colour]) -> None:
    for client in values.columns:
        known = values[client].dropna()
        ax.plot(
            np.asarray(known.index) + 1,
            known.to_numpy(),
            "-" if len(known) > 1 else ".",
            color=shades.get(int(client), "0.5"),
            linewidth=0.9,
            markersize=3,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _draw_dots(ax: Axes, late: pd.Series[float], against: pd.Series[float], shades: dict[int, Colour]) -> None:
    both = pd.concat([against, late], axis=1, join="inner").dropna()
    both.columns = pd.Index(["x", "y"])
    colours = [shades.get(int(client), (0.5, 0.5, 0.5, 1.0)) for client in both.index]
    ax.scatter(both["x"], both["y"], s=14, c=colours, linewidths=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.tick_params(labelleft=False)
    rho = rank_correlation(late, against)
    if not np.isnan(rho):
        ax.set_title(f"ρ = {rho:.2f}", loc="right", fontsize=SMALL, pad=2)


def draw_values(folder: str | Path) -> list[Path]:
    """Write the figure of a run with measures of values into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: a table of the run can't be read.
    """
    folder = Path(folder)
    if not had_values(folder):
        return []
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    return save_figure(plot_values(load_values(folder), load_client_data(folder)), target, "values")
