"""The figures of a report: a panel per level, a line per group; a group has the same colour and dashes everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Transform, offset_copy

from hetfl.analysis.plots import spread
from hetfl.analysis.theme import (
    COLOURS,
    FONT_POINTS,
    GREY,
    LEADER,
    SMALL,
    RoundTicks,
    Style,
    draw_chance,
    log_name,
    log_ticks,
    plain,
    plain_number,
)
from hetfl.report.panels import Axis, Drawing, Panel, numbers_of, thinned
from hetfl.runs.headline import Headline

WIDTH = 7.0
PANEL_HEIGHT = 1.45
LEFT, BOTTOM, GAP = 0.62, 0.48, 0.18
"""Sizes in inches, like those above. ``LEFT`` and ``BOTTOM`` are the
margins for numbers and names of axes; ``GAP`` is the distance between panels."""
TITLE = 0.26
LETTER = 0.078
"""Mean width in inches of a letter of :data:`FONT_POINTS`, with a margin."""
LONGEST = 28
LOG_FROM = 4.0
"""Smallest ratio of the ends of groups for a logarithmic axis; on a linear axis short lines would be at the left."""


def drawing_of(panels: Sequence[Panel], axis: Axis, styles: Mapping[str, Style]) -> Drawing:
    """Return the drawing of panels with all of their numbers; see :func:`draw_panels`."""
    few = thinned(panels)
    return Drawing(draw_panels(few, axis, styles), numbers_of(panels, axis), numbers_of(few, axis))


def draw_panels(panels: Sequence[Panel], axis: Axis, styles: Mapping[str, Style]) -> Figure:
    """Draw panels side by side with common axes: the mean of each group, as far as all seeds go, and every seed.

    A thin line is a seed, to its own end. Points have bars for the spread instead.

    The names of groups are at the ends of their lines in the last panel of the first row if all lines end at the right
    and have different colours; otherwise the names are in a legend above the panels.

    Args:
        panels: at least one panel, each with at least one line.
        axis: names, units and style of the axes.
        styles: the style of each group.
    """
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    tall = PANEL_HEIGHT if rows > 1 else axis.height
    drawn = [name for name in styles if any(name in panel.bands for panel in panels)]
    beside = names_in_a_row(drawn)
    log = _is_log(panels) if axis.log is None else axis.log
    last = panels[columns - 1]
    # Step functions all end in the same corner, and more groups than colours share a colour: then names need a legend.
    distinct = not axis.steps and len(drawn) <= len(COLOURS)
    direct = distinct and set(last.bands) == set(drawn) and _end_at_right(panels, last, log)
    right = 0.3 + LETTER * max(len(_short(name)) for name in drawn) if direct else 0.12
    top = TITLE if direct else TITLE + 0.2 * -(-len(drawn) // beside)
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
        _name_above(figure, drawn, styles, beside, marked=not axis.steps)
    return figure


def mark_of(group: int, seed: int | None = None) -> str:
    """Return the mark of a line in an SVG file, by which the page of a report finds it: of a mean, or of a seed.

    >>> mark_of(0), mark_of(1, 2)
    ('mark g0 mean', 'mark g1 s2')
    """
    return f"mark g{group} {'mean' if seed is None else f's{seed}'}"


def _draw(ax: Axes, panel: Panel, axis: Axis, styles: Mapping[str, Style]) -> None:
    for number, (name, style) in enumerate(styles.items()):
        if name not in panel.bands:
            continue
        band = panel.bands[name]
        for seed, (x, y) in enumerate(band.seeds.values()):
            look: dict[str, Any] = {"color": style.colour, "linewidth": 0.7, "alpha": 0.55, "marker": style.marker}
            # The marker is at the end of the line only: a seed ends where its own budget ends.
            look |= {"markersize": 2.5, "markevery": [len(x) - 1], "gid": mark_of(number, seed)}
            ax.plot(x / axis.scale, axis.shown(y), **look)
        x, (mean, low, high) = band.x / axis.scale, map(axis.shown, (band.mean, band.low, band.high))
        if axis.points and band.n > 1:
            ax.vlines(x, low, high, color=style.colour, linewidth=1.2, gid=mark_of(number))
        marks = 0 if axis.steps else len(x)
        look = style.line(marks) | ({"markevery": 1} if axis.points else {})
        ax.plot(x, mean, drawstyle="steps-post" if axis.steps else "default", gid=mark_of(number), **look)
    ax.set_title(panel.title, loc="left", fontsize=SMALL, pad=4, parse_math=False)
    plain(ax)
    ax.tick_params(labelsize=SMALL, color=GREY)


def _set_axes(axes: Any, panels: Sequence[Panel], axis: Axis, log: bool) -> None:
    figure, first = axes[0, 0].figure, axes[0, 0]
    bands = [band for panel in panels for band in panel.bands.values()]
    start, end = min(band.start for band in bands), max(band.end for band in bands)
    if log:
        first.set_xscale("log")
        first.set_xlim(0.93 * start / axis.scale, 1.07 * end / axis.scale)
        log_ticks(first.xaxis, start, end)
    else:
        left = min(1.0 if axis.rounds else 0.0, start)
        first.set_xlim(left / axis.scale, (end + 0.02 * max(end - left, 1e-9)) / axis.scale)
        first.xaxis.set_major_locator(RoundTicks(5) if axis.rounds else MaxNLocator(nbins=5))
        first.xaxis.set_major_formatter(FuncFormatter(plain_number))
    _set_height(axes, axis)
    rows, columns = axes.shape
    width, height = figure.get_size_inches()
    middle = (axes[0, 0].get_position().x0 + axes[0, columns - 1].get_position().x1) / 2
    text = {"fontsize": FONT_POINTS, "parse_math": False}
    figure.text(middle, 0.06 / height, log_name(axis.x) if log else axis.x, ha="center", va="bottom", **text)
    upright = (axes[rows - 1, 0].get_position().y0 + axes[0, 0].get_position().y1) / 2
    name = log_name(axis.y) if axis.log_y else axis.y
    figure.text(0.04 / width, upright, name, rotation=90, ha="left", va="center", **text)


def _set_height(axes: Any, axis: Axis) -> None:
    """Set the vertical axis that all panels share, and mark the score of guessing."""
    first = axes[0, 0]
    low, high = first.get_ylim()
    if axis.log_y:
        low, high = min(line.get_ydata().min() for ax in axes.flat for line in ax.lines if len(line.get_ydata())), high
        first.set_yscale("log")
        first.set_ylim(0.8 * low, 1.25 * high)
        log_ticks(first.yaxis, 0.8 * low, 1.25 * high)
    elif axis.shares:
        first.set_ylim(max(low, -2.0), min(high, 102.0))  # mean plus standard deviation may exceed 100 %
    for ax in axes.flat:
        if ax.lines:
            draw_chance(ax, axis.chance, Headline(percent=axis.shares))


def _show_numbers(axes: Any, panels: int, columns: int) -> None:
    """Show the numbers of the horizontal axis at panels that have no panel below them."""
    for ax in axes.flat[panels - columns : panels]:
        ax.tick_params(labelbottom=True)


def _limits(panels: Sequence[Panel]) -> tuple[list[float], list[float]]:
    bands = [band for panel in panels for band in panel.bands.values()]
    return [band.start for band in bands], [band.end for band in bands]


def _is_log(panels: Sequence[Panel]) -> bool:
    starts, ends = _limits(panels)
    return min(starts) > 0 and max(ends) > LOG_FROM * min(ends)


def _end_at_right(panels: Sequence[Panel], last: Panel, log: bool) -> bool:
    starts, ends = _limits(panels)
    shown = np.log if log else np.asarray
    low, high = (float(shown(value)) for value in (min(starts) if log else 0.0, max(ends)))
    return all(len(band.x) and high - float(shown(band.x[-1])) <= 0.04 * (high - low) for band in last.bands.values())


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


def names_in_a_row(names: Sequence[str]) -> int:
    """Return how many names of a legend fit beside each other, from 1 to 4."""
    longest = max(len(_short(name)) for name in names)
    return int(np.clip((WIDTH - LEFT) / (0.6 + LETTER * longest), 1, 4))


def _name_above(
    figure: Figure, names: Sequence[str], styles: Mapping[str, Style], columns: int, *, marked: bool
) -> None:
    handles = [Line2D([], [], **styles[name].line(1 if marked else 0)) for name in names]
    # matplotlib leaves names with a leading underscore out of a legend; a leading space avoids this.
    legend = figure.legend(
        handles,
        [f" {_short(name)}" for name in names],
        loc="upper left",
        ncols=columns,
        frameon=False,
        fontsize=FONT_POINTS,
        handlelength=2.6,
        borderaxespad=0.0,
        bbox_to_anchor=(LEFT / WIDTH, 1.0),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
