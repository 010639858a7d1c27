"""The figures of a report: a panel per level, a line per group; a group has the same colour and dashes everywhere.

The colours are those of Okabe and Ito, which are distinguishable without colour vision; dashes work without colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Transform, offset_copy
from numpy.typing import NDArray

from hetfl.analysis.figures import plain
from hetfl.analysis.plots import FONT_POINTS, GREY, LEADER, log_ticks, plain_number, spread
from hetfl.report.series import Band
from hetfl.runs.headline import Headline

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")

WIDTH = 7.0
PANEL_HEIGHT, ALONE = 1.45, 2.1
LEFT, BOTTOM, GAP = 0.62, 0.48, 0.18
"""Sizes in inches, like those above. ``ALONE`` is the height of panels in a single row; ``LEFT`` and ``BOTTOM`` are the
margins for numbers and names of axes; ``GAP`` is the distance between panels."""
TITLE = 0.26
LETTER = 0.078
"""Mean width in inches of a letter of :data:`FONT_POINTS`, with a margin."""
LONGEST = 28
LOG_FROM = 4.0
"""Smallest ratio of the ends of groups for a logarithmic axis; on a linear axis short lines would be at the left."""


@dataclass(frozen=True)
class Style:
    """The style of a group in all figures."""

    colour: str
    dashes: Any
    marker: str


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, and a line per group."""

    title: str
    bands: Mapping[str, Band]


@dataclass(frozen=True)
class Axis:
    """Names, units and style of the two axes.

    Attributes:
        x: name of the horizontal axis.
        y: name of the vertical axis.
        scale: amount of one unit of the horizontal axis.
        whole: whether the horizontal axis has only whole numbers.
        log: whether the horizontal axis is logarithmic; None: if the ends of groups differ by :data:`LOG_FROM`.
        steps: whether lines are step functions.
        points: whether points are marked, with bars instead of a band for the spread.
        shares: whether values of the vertical axis are shares, which are shown as percentages.
    """

    x: str
    y: str = "Accuracy (%)"
    scale: float = 1.0
    whole: bool = False
    log: bool | None = None
    steps: bool = False
    points: bool = False
    shares: bool = True

    def of(self, headline: Headline) -> Axis:
        """Return the same axes with a headline on the vertical axis."""
        return replace(self, y=headline.in_unit(headline.heading), shares=headline.percent)

    def shown(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values in the unit of the vertical axis."""
        return 100 * values if self.shares else values


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """Return the style of each group; up to 35 groups have different styles."""
    looks = zip(names, cycle(OKABE_ITO), cycle(DASHES), cycle(MARKERS), strict=False)
    return {name: Style(colour, dashes, marker) for name, colour, dashes, marker in looks}


def draw_panels(panels: Sequence[Panel], axis: Axis, styles: Mapping[str, Style]) -> Figure:
    """Draw panels side by side with common axes, the mean of each group with its spread.

    The names of groups are at the ends of their lines in the last panel of the first row if all lines end at the right
    and have different colours; otherwise the names are in a legend above the panels.

    Args:
        panels: at least one panel, each with at least one line.
        axis: names, units and style of the axes.
        styles: the style of each group.
    """
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    tall = PANEL_HEIGHT if rows > 1 else ALONE
    drawn = [name for name in styles if any(name in panel.bands for panel in panels)]
    log = _is_log(panels) if axis.log is None else axis.log
    last = panels[columns - 1]
    # Step functions all end in the same corner, and more groups than colours share a colour: then names need a legend.
    distinct = not axis.steps and len(drawn) <= len(OKABE_ITO)
    direct = distinct and set(last.bands) == set(drawn) and _end_at_right(panels, last, log)
    right = 0.3 + LETTER * max(len(_short(name)) for name in drawn) if direct else 0.12
    top = TITLE if direct else TITLE + 0.24 * -(-len(drawn) // 3)
    height = BOTTOM + top + rows * tall + (rows - 1) * (GAP + TITLE)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    inner = (WIDTH - LEFT - right - (columns - 1) * GAP) / columns
    figure.subplots_adjust(
        left=LEFT / WIDTH,
        right=1 - right / WIDTH,
        bottom=BOTTOM / height,
        top=1 - top / height,
        wspace=GAP / inner,
        hspace=(GAP + TITLE) / tall,
    )
    for ax, panel in zip(axes.flat, panels, strict=False):
        _draw(ax, panel, axis, styles)
    _set_axes(axes, panels, axis, log)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
        _show_numbers(axes, len(panels), columns)
    if direct:
        _name_ends(axes.flat[columns - 1], last, axis, styles)
    else:
        _name_above(figure, drawn, styles, points=axis.points)
    return figure


def _draw(ax: Axes, panel: Panel, axis: Axis, styles: Mapping[str, Style]) -> None:
    for name, style in styles.items():
        if name not in panel.bands:
            continue
        band = panel.bands[name]
        x, (mean, low, high) = band.x / axis.scale, map(axis.shown, (band.mean, band.low, band.high))
        look: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes, "linewidth": 1.5}
        if axis.points:
            if band.n > 1:
                ax.vlines(x, low, high, color=style.colour, linewidth=1.2)
            look |= {"marker": style.marker, "markersize": 4.5}
        elif band.n > 1:
            ax.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
        if len(x) == 1 and not axis.points:
            look |= {"marker": style.marker, "markersize": 4.5}
        ax.plot(x, mean, drawstyle="steps-post" if axis.steps else "default", **look)
    ax.set_title(panel.title, loc="left", fontsize=FONT_POINTS - 0.5, pad=4, parse_math=False)
    plain(ax)
    ax.tick_params(labelsize=FONT_POINTS - 1, color=GREY)


def _set_axes(axes: Any, panels: Sequence[Panel], axis: Axis, log: bool) -> None:
    figure, first = axes[0, 0].figure, axes[0, 0]
    starts, ends = _limits(panels)
    if log:
        first.set_xscale("log")
        first.set_xlim(0.93 * min(starts) / axis.scale, 1.07 * max(ends) / axis.scale)
        log_ticks(first.xaxis, min(starts), max(ends))
    else:
        left, right = min(0.0, *starts), max(ends)
        first.set_xlim(left / axis.scale, (right + 0.02 * (right - left)) / axis.scale)
        first.xaxis.set_major_locator(MaxNLocator(integer=axis.whole, nbins=5))
        first.xaxis.set_major_formatter(FuncFormatter(plain_number))
    low, high = first.get_ylim()
    if axis.shares:
        first.set_ylim(max(low, -2.0), min(high, 102.0))  # mean plus standard deviation may exceed 100 %
    rows, columns = axes.shape
    width, height = figure.get_size_inches()
    middle = (axes[0, 0].get_position().x0 + axes[0, columns - 1].get_position().x1) / 2
    text = {"fontsize": FONT_POINTS, "parse_math": False}
    figure.text(middle, 0.06 / height, axis.x, ha="center", va="bottom", **text)
    upright = (axes[rows - 1, 0].get_position().y0 + axes[0, 0].get_position().y1) / 2
    figure.text(0.04 / width, upright, axis.y, rotation=90, ha="left", va="center", **text)


def _show_numbers(axes: Any, panels: int, columns: int) -> None:
    """Show the numbers of the horizontal axis at panels that have no panel below them."""
    for ax in axes.flat[panels - columns : panels]:
        ax.tick_params(labelbottom=True)


def _limits(panels: Sequence[Panel]) -> tuple[list[float], list[float]]:
    bands = [band for panel in panels for band in panel.bands.values()]
    return [float(band.x[0]) for band in bands], [float(band.x[-1]) for band in bands]


def _is_log(panels: Sequence[Panel]) -> bool:
    starts, ends = _limits(panels)
    return min(starts) > 0 and max(ends) > LOG_FROM * min(ends)


def _end_at_right(panels: Sequence[Panel], last: Panel, log: bool) -> bool:
    starts, ends = _limits(panels)
    shown = np.log if log else np.asarray
    low, high = (float(shown(value)) for value in (min(starts) if log else 0.0, max(ends)))
    return all(high - float(shown(band.x[-1])) <= 0.04 * (high - low) for band in last.bands.values())


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _name_ends(ax: Axes, panel: Panel, axis: Axis, styles: Mapping[str, Style]) -> None:
    """Write the name of each group beside the end of its line, moved apart where ends are close."""
    low, high = ax.get_ylim()
    points = 72 * ax.get_position().height * figure_of(ax).get_size_inches()[1] / (high - low)  # per unit of the axis
    edge = ax.get_xlim()[1]
    ends = {
        name: (float(band.x[-1]) / axis.scale, float(axis.shown(band.mean[-1:])[0]))
        for name, band in panel.bands.items()
    }
    places = spread([y for _, y in ends.values()], 1.35 * FONT_POINTS / points, low, high - 0.6 * FONT_POINTS / points)
    for (name, (x, y)), place in zip(ends.items(), places, strict=True):
        ax.annotate(
            _short(name),
            xy=(x, y),
            xytext=(edge, float(place)),
            textcoords=_beside(ax),
            va="center",
            color=styles[name].colour,
            fontsize=FONT_POINTS,
            annotation_clip=False,
            parse_math=False,
            arrowprops=LEADER | {"color": styles[name].colour},
        )


def _beside(ax: Axes) -> Transform:
    """Return the coordinates of the data, moved by some points to the right."""
    return offset_copy(ax.transData, figure_of(ax), x=14, units="points")


def figure_of(ax: Axes) -> Figure:
    """Return the figure that axes are on."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes are made on one
    return figure


def _name_above(figure: Figure, names: Sequence[str], styles: Mapping[str, Style], points: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=styles[name].colour,
            linestyle=styles[name].dashes,
            linewidth=1.5,
            marker=styles[name].marker if points else "",
            markersize=4.5,
        )
        for name in names
    ]
    # matplotlib leaves names with a leading underscore out of a legend; a leading space avoids this.
    legend = figure.legend(
        handles,
        [f" {_short(name)}" for name in names],
        loc="upper left",
        ncols=3,
        frameon=False,
        fontsize=FONT_POINTS,
        handlelength=2.6,
        borderaxespad=0.0,
        bbox_to_anchor=(LEFT / WIDTH, 1.0),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
