"""Helpers of all figures: a heading with a hint on what to look for, names of lines, maps of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray

from hetfl.analysis.plots import spread
from hetfl.analysis.theme import FONT_POINTS, GREY, MAP, SMALL, TINY, Colour, ink_on, text_sizes

INCHES_PER_LETTER = 0.068
"""Mean width of a letter of :data:`FONT_POINTS`, with a margin."""
LINE_INCHES = 1.35 * FONT_POINTS / 72


def new_figure(
    title: str, look_for: str, *, width: float = 6.4, height: float = 3.4, rows: int = 1, columns: int = 1
) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure with a title and a sentence on what to look for, and its axes, shape (rows, columns).

    Args:
        title: what is shown.
        look_for: one sentence, wrapped below the title.
        width: width of the figure in inches.
        height: height of the part below the heading in inches.
        rows: rows of axes.
        columns: columns of axes.
    """
    lines = textwrap.wrap(look_for, int(width / INCHES_PER_LETTER))
    heading = (len(lines) + 2) * LINE_INCHES
    whole = height + heading
    figure = Figure(figsize=(width, whole), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None  # it was just asked for
    engine.set(rect=(0, 0, 1, height / whole))  # type: ignore[call-arg]
    figure.text(0.012, 1 - 0.4 * LINE_INCHES / whole, title, fontsize=FONT_POINTS + 2, va="top")
    below = 1 - 1.8 * LINE_INCHES / whole
    figure.text(0.012, below, "\n".join(lines), fontsize=FONT_POINTS, color=GREY, va="top", linespacing=1.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        text_sizes(ax)
    return figure, axes


def grid_figure(title: str, look_for: str, panels: int, *, columns: int, side: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels in rows, and its axes in reading order.

    Args:
        title: what is shown.
        look_for: one sentence, wrapped below the title.
        panels: number of panels.
        columns: maximum number of panels in a row; fewer if that fills the rows better.
        side: height of a panel in inches; the width is a little larger.
    """
    rows = -(-panels // columns)
    columns = -(-panels // rows)
    figure, axes = new_figure(
        title, look_for, width=max(1.15 * side * columns, 5.0), height=side * rows, rows=rows, columns=columns
    )
    for ax in axes.flat[panels:]:
        ax.remove()
    return figure, list(axes.flat[:panels])


def level_legend(ax: Axes, colours: Mapping[str, Colour]) -> None:
    """Write the legend of levels beside an axes."""
    handles = [Patch(color=colour, label=level) for level, colour in colours.items()]
    legend = ax.legend(handles=handles, title="level", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    legend.get_title().set_fontsize(FONT_POINTS)
    for text in legend.get_texts():
        text.set_fontsize(FONT_POINTS)


def client_rows(ax: Axes, clients: Sequence[int]) -> None:
    """Name the rows of an axes after clients, unless there are more than 60."""
    few = len(clients) <= 60
    ax.set_yticks(range(len(clients)) if few else [], [str(client) for client in clients] if few else [])
    ax.tick_params(axis="y", length=0, labelsize=TINY)
    ax.set_ylabel("Client")


def number_map(
    ax: Axes,
    values: NDArray[np.float64],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    low: float,
    high: float,
    form: str,
) -> AxesImage:
    """Draw a table as colours with its numbers in them, dark for ``low``; NaN is an empty cell.

    Args:
        ax: axes to draw on.
        values: shape (rows, columns).
        rows: names of the rows.
        columns: names of the columns.
        low: the value of the darkest colour.
        high: the value of the lightest colour.
        form: format of a number, such as ``".2f"``.
    """
    image = ax.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = ink_on(image.to_rgba(np.array([value]))[0])
            ax.text(column, row, format(value, form), ha="center", va="center", color=colour, fontsize=TINY)
    return image


def colour_bar(image: AxesImage, label: str, axes: Axes | Sequence[Axes]) -> None:
    """Draw the scale of colours beside axes."""
    figure = image.get_figure(root=True)
    assert figure is not None  # it is on axes
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(label, fontsize=FONT_POINTS)
    bar.ax.tick_params(labelsize=SMALL, color=GREY)
    bar.outline.set_visible(False)


def label_ends(ax: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, Colour | str]) -> None:
    """Write the name of each line beside its end, moved apart where ends are close.

    Args:
        ax: axes with their final limits.
        ends: the last point of each line, by name.
        colours: the colour of each line, by name.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes are on one
    figure.draw_without_rendering()  # a constrained layout sets the height of the axes only here
    (low, high), farthest = ax.get_ylim(), min if ax.xaxis_inverted() else max
    right = farthest(x for x, _ in ends.values())
    points = ax.get_window_extent().height * 72 / figure.get_dpi() / (high - low)  # per unit of y
    line = 1.25 * FONT_POINTS / points
    places = spread([y for _, y in ends.values()], line, low + line / 2, high)
    for (name, _), place in zip(ends.items(), places, strict=True):
        ax.annotate(
            name,
            xy=(right, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colours[name],
            fontsize=FONT_POINTS,
            annotation_clip=False,
        )
