"""Figures of the holders of entries, the drift of levels, and the norms of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hetfl.analysis.figures import colour_bar, grid_figure, label_ends, new_figure
from hetfl.analysis.part_maps import matrices_among
from hetfl.analysis.theme import FONT_POINTS, MAP, SMALL, level_colours, level_styles, plain, rounds_axis
from hetfl.errors import ConfigurationError


def plot_mean_holders(table: pd.DataFrame) -> Figure:
    """Draw how many clients of each level hold an entry of a tensor in a round: stacked bars, one per tensor.

    Args:
        table: the result of :func:`hetfl.analysis.mean_holders`.
    """
    figure, axes = new_figure(
        "Holders per layer and round",
        "Look for short bars: an entry of such a layer is the mean of few clients' updates. The colours show the "
        "levels of these clients.",
        height=0.9 + 0.24 * len(table),
    )
    ax, before = axes[0, 0], np.zeros(len(table))
    for level, colour in level_colours([str(name) for name in table.columns]).items():
        ax.barh(range(len(table)), table[level], left=before, color=colour, height=0.75)
        if table[level].iloc[0]:
            middle = before[0] + table[level].iloc[0] / 2
            ax.text(middle, -0.5, level, color=colour, ha="center", va="bottom", fontsize=FONT_POINTS)
        before = before + table[level].to_numpy()
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.set_ylim(len(table) - 0.5, -1.2)
    ax.set_xlabel("Clients that hold an entry, mean per round")
    plain(ax, "x")
    return figure


def plot_holders(holders: Mapping[str, Tensor], tensors: Sequence[str] | None = None) -> Figure:
    """Draw how many clients ever held each entry: a map per tensor, output channels by input channels.

    Kernel dimensions are averaged. All maps have the same colour scale.

    Args:
        holders: the result of :func:`hetfl.analysis.holders`.
        tensors: names of tensors of two or more dimensions; None: all of them.

    Raises:
        ConfigurationError: a name is unknown, or its tensor has fewer than two dimensions.
    """
    names = matrices_among(holders, tensors)
    figure, axes = grid_figure(
        "Clients that ever held an entry",
        "Look for dark regions: few clients ever trained these entries, so the entries depend on the data of few "
        "clients.",
        len(names),
        columns=3,
        side=2.3,
    )
    most = max(int(holders[name].max()) for name in names)
    for ax, name in zip(axes, names, strict=True):
        counts = holders[name].double().flatten(2).mean(2) if holders[name].dim() > 2 else holders[name].double()
        image = ax.imshow(counts.numpy(), cmap=MAP, vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        ax.set_title(name, fontsize=FONT_POINTS)
        ax.set_xlabel("Input channel")
        ax.set_ylabel("Output channel")
        for axis, size in ((ax.xaxis, counts.shape[1]), (ax.yaxis, counts.shape[0])):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=4))
            if size == 1:
                axis.set_ticks([0])
    colour_bar(image, "Distinct clients", axes)
    return figure


def plot_drift(table: pd.DataFrame) -> Figure:
    """Draw the drift of each level from the global model over rounds.

    Args:
        table: the result of :meth:`hetfl.analysis.LevelDrift.table`, with rows of one global model.

    Raises:
        ConfigurationError: the table has no row with a drift, or rows of several global models.
    """
    if (models := table["model"].nunique()) > 1:
        raise ConfigurationError(f"Expected the drift of one global model but got {models}: table[table.model == 0]")
    known = table.dropna(subset="drift")
    if known.empty:
        raise ConfigurationError("Expected the drift of at least one round but got none: use LevelDrift during the run")
    figure, axes = new_figure(
        "Drift of each level from the global model",
        "Look for a line that stays above the others: the updates of this level alone would give a different part of "
        "the model than the updates of all levels.",
    )
    ax = axes[0, 0]
    styles, ends = level_styles([str(level) for level in table["level"].unique()]), {}
    for level, style in styles.items():
        rows = known[known["level"] == level]
        if rows.empty:
            continue
        ax.plot(rows["step"] + 1, 100 * rows["drift"], **style.line(len(rows)))
        ends[level] = (float(rows["step"].iloc[-1]) + 1, 100 * float(rows["drift"].iloc[-1]))
    ax.set_ylim(bottom=0)
    ax.set_xlim(known["step"].min() + 1, max(known["step"].max(), known["step"].min() + 1) + 1)
    rounds_axis(ax)
    ax.set_ylabel("Distance (% of the norm of its part)")
    plain(ax)
    label_ends(ax, ends, {level: style.colour for level, style in styles.items()})
    return figure


def plot_channel_norms(table: pd.DataFrame) -> Figure:
    """Draw the norm of every output channel in index order, coloured by the smallest level that holds it.

    Args:
        table: the result of :func:`hetfl.analysis.channel_norms`.
    """
    names = list(table["tensor"].unique())
    figure, axes = grid_figure(
        "Norm of every output channel, in index order",
        "Look for steps: if the first channels, which all levels share, are higher than the rest, small levels lose "
        "little. A letter is the smallest level that holds the channels below it.",
        len(names),
        columns=3,
        side=2.0,
    )
    # In index order the smallest level comes first.
    colours = level_colours([str(level) for level in table["level"].unique()][::-1])
    for ax, name in zip(axes, names, strict=True):
        if ax is not axes[0]:
            ax.sharey(axes[0])
        rows = table[table["tensor"] == name]
        ax.bar(rows["channel"], rows["norm"], width=1.0, color=[colours[level] for level in rows["level"]])
        for level, part in rows.groupby("level"):
            ax.text(
                part["channel"].mean(),
                1.0,
                str(level),
                transform=ax.get_xaxis_transform(),
                color=colours[str(level)],
                ha="center",
                va="bottom",
                fontsize=SMALL,
            )
        first = int((rows["level"] == rows["level"].iloc[0]).cumprod().sum())  # channels before those of another level
        part, share = first / len(rows), rows["share"].iloc[first - 1]
        title = f"{name}\nfirst {100 * part:.3g} %: {100 * share:.3g} % of norm²"
        ax.set_title(title, fontsize=SMALL, pad=14)
        ax.set_xlabel("Channel")
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("Norm of its weights")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        plain(ax)
    return figure
