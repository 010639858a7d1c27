"""Figures of weights: distributions, singular values, change over rounds, loss between nets, and maps of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hetfl.analysis.figures import grid_figure, label_ends, level_legend, new_figure
from hetfl.analysis.interpolation import loss_barrier
from hetfl.analysis.part_maps import NOBODY, as_matrix, matrices_among
from hetfl.analysis.theme import FONT_POINTS, group_styles, level_colours, level_styles, plain, rounds_axis


def plot_weight_quantiles(table: pd.DataFrame) -> Figure:
    """Draw the distribution of the weights of each level and tensor: a box of the middle half, a line of 90 %.

    Args:
        table: the result of :func:`hetfl.analysis.weight_quantiles`.
    """
    tensors, levels = list(table["tensor"].unique()), list(table["level"].unique())
    colours = level_colours(levels)
    figure, axes = new_figure(
        "Distribution of the weights",
        "Look for boxes that grow towards small levels: their entries are trained by all clients, and do the work of "
        "more channels.",
        height=1.0 + 0.2 * len(table),
    )
    ax = axes[0, 0]
    for _, row in table.iterrows():
        place = tensors.index(row["tensor"]) + 0.8 * (levels.index(row["level"]) / len(levels) - 0.4)
        colour = colours[row["level"]]
        ax.plot([row["q05"], row["q95"]], [place, place], color=colour, linewidth=1)
        ax.barh(place, row["q75"] - row["q25"], left=row["q25"], height=0.6 / len(levels), color=colour)
    ax.set_yticks(range(len(tensors)), tensors)
    ax.invert_yaxis()
    ax.set_xlabel("value of a weight")
    plain(ax, "x")
    level_legend(ax, colours)
    return figure


def plot_weight_spectra(table: pd.DataFrame) -> Figure:
    """Draw the singular values of each tensor, a line per level.

    Args:
        table: the result of :func:`hetfl.analysis.weight_spectra`.
    """
    tensors = list(table["tensor"].unique())
    levels = list(table["level"].unique())
    styles = level_styles(levels)
    figure, axes = grid_figure(
        "Singular values of the weights",
        "Look for lines that reach 0 early: these weights use few directions. A line that ends above 0 uses all.",
        len(tensors),
        columns=3,
        side=2.1,
    )
    for ax, tensor in zip(axes, tensors, strict=True):
        for level, rows in table[table["tensor"] == tensor].groupby("level", sort=False):
            ax.plot(rows["position"], rows["value"], **styles[str(level)].line(len(rows)))
        ax.set_ylim(bottom=0)
        ax.set_title(tensor, fontsize=FONT_POINTS)
        ax.set_xlabel("position")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        plain(ax)
    axes[0].set_ylabel("singular value")
    level_legend(axes[-1], level_colours(levels))
    return figure


def plot_distance_to_last(table: pd.DataFrame) -> Figure:
    """Draw how far the weights were from their last values, a line per smallest level that holds them.

    Args:
        table: the result of :func:`hetfl.analysis.distance_to_last`.
    """
    figure, axes = new_figure(
        "Distance of the weights from their last values",
        "A line is of the entries whose smallest holder is this level. Look for lines that stay high: these entries "
        "still move late in the run.",
        height=2.8,
    )
    ax, levels = axes[0, 0], [str(level) for level in table.columns]
    for level, style in level_styles(levels).items():
        ax.plot(table.index + 1, table[level], **style.line(len(table)))
    ax.set_ylim(0, 1.05 * float(table.max().max()))
    rounds_axis(ax)
    ax.set_ylabel("distance / last norm")
    plain(ax)
    ax.set_xlim(table.index[0] + 1, table.index[-1] + 1)
    level_legend(ax, level_colours(levels))
    return figure


def plot_loss_paths(paths: Mapping[str, pd.DataFrame], title: str = "Loss between two nets") -> Figure:
    """Draw the loss on the straight lines between pairs of nets; the label has the height of the barrier.

    Args:
        paths: by name of a pair, the result of :func:`hetfl.analysis.loss_path`.
        title: what is shown.
    """
    figure, axes = new_figure(
        title,
        "Look for a hill between the ends; its height is beside the line. There, means of both nets are worse.",
        height=3.0,
    )
    ax, styles = axes[0, 0], group_styles(list(paths))
    colours: dict[str, str] = {}
    ends: dict[str, tuple[float, float]] = {}
    for name, path in paths.items():
        label = f"{name}: {loss_barrier(path):.2f}"
        ax.plot(path["alpha"], path["loss"], **styles[name].line(len(path)))
        colours[label], ends[label] = styles[name].colour, (1.0, float(path["loss"].iloc[-1]))
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of the second net")
    ax.set_ylabel("loss")
    plain(ax)
    label_ends(ax, ends, colours)
    return figure


def plot_level_maps(maps: Mapping[str, Tensor], levels: Sequence[str], tensors: Sequence[str] | None = None) -> Figure:
    """Draw the smallest level that holds each entry: a row per output, all other dimensions flattened to columns.

    Args:
        maps: the result of :func:`hetfl.analysis.smallest_levels`.
        levels: names of the levels in the order of their numbers.
        tensors: names of tensors of two or more dimensions; None: all of them.

    Raises:
        ConfigurationError: a name is unknown, or its tensor has fewer than two dimensions.
    """
    names = matrices_among(maps, tensors)
    colours = level_colours(levels)
    figure, axes = grid_figure(
        "The smallest level that holds an entry",
        "Look for the shape of the parts: blocks for widths, dots for masks. White: no level holds the entry.",
        len(names),
        columns=3,
        side=2.2,
    )
    shades = ListedColormap([matplotlib.colors.to_rgba("white"), *colours.values()])
    norm = BoundaryNorm(np.arange(NOBODY, len(levels) + 1) - 0.5, len(levels) + 1)
    for ax, name in zip(axes, names, strict=True):
        values = as_matrix(maps[name]).numpy()
        ax.imshow(values, cmap=shades, norm=norm, aspect="auto", interpolation="nearest")
        ax.set_title(name, fontsize=FONT_POINTS)
        ax.set_xlabel("inputs")
        ax.set_ylabel("output channel")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    level_legend(axes[-1], colours)
    return figure
