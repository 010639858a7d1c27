"""Figures of the density and the residuals of each layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hetfl.analysis.figures import colour_bar, new_figure, number_map
from hetfl.analysis.theme import GREY, plain
from hetfl.errors import ConfigurationError


def plot_layer_density(table: pd.DataFrame) -> Figure:
    """Draw the fraction of each tensor that was sent in each round.

    Args:
        table: the result of :func:`hetfl.analysis.layer_density`.
    """
    percent = 100 * table.to_numpy(dtype=np.float64)
    figure, axes = new_figure(
        "Share of the held entries that was sent",
        "Look for light rows: most bytes are spent on these layers. In a row that stays dark most changes wait in the "
        "residuals.",
        width=max(2.9 + 0.45 * table.shape[1], 5.0),
        height=0.9 + 0.26 * len(table),
    )
    ax = axes[0, 0]
    image = number_map(
        ax,
        percent,
        rows=[str(name) for name in table.index],
        columns=[str(int(step) + 1) for step in table.columns],
        low=0.0,
        high=float(np.nanmax(percent)),
        form=".1f",
    )
    ax.set_xlabel("Rounds done")
    colour_bar(image, "Density (%)", ax)
    return figure


def plot_residuals(table: pd.DataFrame) -> Figure:
    """Draw the norm of the residuals of each tensor: in total, and per entry.

    Args:
        table: the result of :func:`hetfl.analysis.layer_residuals`.

    Raises:
        ConfigurationError: there are no residuals.
    """
    if table.empty:
        raise ConfigurationError("Expected residuals but got none: did the run compress, with error feedback?")
    figure, axes = new_figure(
        "Residuals of error feedback",
        "Look for layers with long bars on the right but not on the left: these layers are small, but their entries "
        "wait longest.",
        width=7.2,
        height=0.9 + 0.24 * len(table),
        columns=2,
    )
    left, right = axes[0]
    for ax, column, label in ((left, "norm", "norm over all clients"), (right, "rms", "root mean square of an entry")):
        ax.barh(range(len(table)), table[column], color=GREY, height=0.75)
        ax.set_yticks(range(len(table)), [str(name) for name in table.index] if ax is left else [""] * len(table))
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
        ax.set_xlabel(f"{label[0].upper()}{label[1:]}\n(units of a delta)", labelpad=12)
        plain(ax, "x")
    return figure
