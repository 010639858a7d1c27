"""The look of all figures: colours, dashes and markers, sizes of text, axes of rounds, percentages and logarithms.

Every colour of a line has a contrast of at least 4.5 to white, so that names can be written in it. Lines that are
compared differ in colour, dashes and marker. The colours stay apart for people with deuteranopia, protanopia or
tritanopia: ``tests/test_theme.py`` simulates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hetfl.runs.headline import Headline

FONT_POINTS = 9.0
SMALL, TINY = FONT_POINTS - 1, FONT_POINTS - 2
"""Sizes of text in points: of names, of numbers at axes, and the smallest of all."""
INK, GREY, GRID, PAPER = "#000000", "#595959", "#ebebeb", "#ffffff"
"""Colours of text and axes, of notes, of grid lines, and of the background."""
NOTHING = "#ededed"
"""Colour of a place without a value."""

COLOURS = ("#0067b1", "#c14300", "#8000ff", "#660000", "#b35071", "#000080", "#4d0040")
"""Colours of things without an order, such as groups of runs."""
ON_DARK = ("#62b0f5", "#ff9155", "#b2ffff", "#d5ff00", "#c4a88a", "#7da1b2", "#ffe6b2")
"""The same on a dark background; the colour at a place stands for :data:`COLOURS` at this place."""
ORDERED = LinearSegmentedColormap.from_list("levels", ["#220a4a", "#2d55b0", "#00807c", "#6d7a00", "#96004b"])
"""Colours of things with an order, such as levels, from the first to the last."""
MAP = "viridis"
"""Colour map of numbers."""
WRONG = COLOURS[1]
"""Colour of an error."""
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
MARKED = 8
"""Number of markers on a long line."""
LEADER = {"arrowstyle": "-", "lw": 0.6, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
"""Style of the line from the end of a curve to its name."""

Colour = tuple[float, float, float, float]


@dataclass(frozen=True)
class Style:
    """How a line looks in all figures.

    Attributes:
        colour: its colour, as ``#rrggbb``.
        dashes: its dashes, in matplotlib's form.
        marker: the marker of its points.
    """

    colour: str
    dashes: Any = "solid"
    marker: str = "o"

    def line(self, points: int = 0, width: float = 1.6) -> dict[str, Any]:
        """Return the arguments of ``Axes.plot`` for a line.

        Args:
            points: number of points of the line, a few of which are marked; 0: no markers.
            width: width of the line in points of the page.
        """
        look = {"color": self.colour, "linestyle": self.dashes, "linewidth": width}
        if points:
            look |= {"marker": self.marker, "markersize": 4.0, "markevery": max(1, -(-points // MARKED))}
        return look


def group_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style per name; up to 35 names have different styles."""
    looks = zip(names, cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    return {name: Style(colour, dashes, marker) for name, colour, dashes, marker in looks}


def level_styles(levels: Sequence[str]) -> dict[str, Style]:
    """Return a style per level, in the order of the levels; neighbours differ in colour, dashes and marker.

    >>> [style.marker for style in level_styles(["a", "b"]).values()]
    ['o', 's']
    """
    shades = ORDERED(np.linspace(0.0, 1.0, len(levels)) if len(levels) > 4 else np.arange(len(levels)) / 4)
    looks = zip(levels, shades, cycle(DASHES), cycle(MARKERS), strict=False)
    return {level: Style(to_hex(shade), dashes, marker) for level, shade, dashes, marker in looks}


def level_colours(levels: Sequence[str]) -> dict[str, Colour]:
    """Return the colour of each level, the same as in :func:`level_styles`."""
    return {level: (*to_rgb(style.colour), 1.0) for level, style in level_styles(levels).items()}


def cluster_colours(count: int) -> list[Colour]:
    """Return a colour per cluster: :data:`COLOURS`, or for more clusters the colours of a colour map."""
    if count <= len(COLOURS):
        return [(*to_rgb(colour), 1.0) for colour in COLOURS[:count]]
    return [colormaps["turbo"](cluster / (count - 1)) for cluster in range(count)]


def luminance(colour: Any) -> float:
    """Return the relative luminance of a colour, from 0 (black) to 1 (white), as WCAG defines it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(one: Any, other: Any) -> float:
    """Return the contrast of two colours, from 1 to 21; text needs 4.5.

    >>> contrast("white", "black"), round(contrast("white", GREY), 1)
    (21.0, 7.0)
    """
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink_on(background: Any) -> str:
    """Return the colour, black or white, in which text on a background has more contrast (at least 4.5)."""
    return max(("black", "white"), key=lambda ink: contrast(ink, background))


def plain(ax: Axes, grid: str = "y") -> None:
    """Draw axes without a box, with a light grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)


def text_sizes(ax: Axes) -> None:
    """Set the sizes of the names and numbers of axes."""
    ax.tick_params(labelsize=SMALL, color=GREY)
    ax.xaxis.label.set_fontsize(FONT_POINTS)
    ax.yaxis.label.set_fontsize(FONT_POINTS)


class RoundTicks(MaxNLocator):
    """Ticks at whole numbers of rounds, with 1 in place of 0: the first round is 1.

    Args:
        count: maximum number of ticks.
    """

    def __init__(self, count: int = 6) -> None:
        super().__init__(nbins=count, integer=True)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the places of the ticks."""
        ticks = np.asarray(super().tick_values(vmin, vmax))
        return np.where(ticks == 0, 1, ticks)


def rounds_axis(ax: Axes, ticks: int = 6) -> None:
    """Name the horizontal axis after the rounds that are done, of which the first is 1."""
    ax.set_xlabel("Rounds done", fontsize=FONT_POINTS)
    ax.xaxis.set_major_locator(RoundTicks(ticks))


def mark_lost(ax: Axes, x: Any, y: Any) -> None:
    """Draw a cross at each point, which is visible on every colour."""
    ax.plot(x, y, "X", color=PAPER, markeredgecolor=INK, markersize=4.5, markeredgewidth=0.7)


def log_name(name: str) -> str:
    """Return the name of a logarithmic axis.

    >>> log_name("Uploaded (MB)"), log_name("Singular value")
    ('Uploaded (MB, log scale)', 'Singular value, log scale')
    """
    return f"{name[:-1]}, log scale)" if name.endswith(")") else f"{name}, log scale"


def score_axis(ax: Axes, headline: Headline) -> None:
    """Name the vertical axis after the headline."""
    ax.set_ylabel(headline.in_unit(headline.heading), fontsize=FONT_POINTS, parse_math=False)


def draw_chance(ax: Axes, chance: float | None, headline: Headline) -> None:
    """Draw the score of guessing as a dotted line, and name it; do nothing if it is unknown or outside of the axes.

    Args:
        ax: axes with their final limits.
        chance: the score in the unit of ``metrics.csv``; None: unknown.
        headline: the score of the vertical axis.
    """
    low, high = ax.get_ylim()
    if chance is None or not low < headline.scale * chance < high:
        return
    level = headline.scale * chance
    ax.axhline(level, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
    place: dict[str, Any] = {
        "xy": (1.0, level),
        "xycoords": ax.get_yaxis_transform(),
        "xytext": (-2, 1),
        "textcoords": "offset points",
    }
    ax.annotate(f"chance: {headline.shown(chance, 0)}", **place, ha="right", va="bottom", fontsize=TINY, color=GREY)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Set few tick labels without exponents on a logarithmic axis: powers of ten, and on short axes some between them.

    Args:
        axis: the axis.
        low: its lower end.
        high: its upper end.
    """
    decades = np.log10(high / low)
    if decades < 0.5:  # the axis may have no 1, 2 or 5 times a power of ten
        axis.set_major_locator(MaxNLocator(nbins=5))
    else:
        subs = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(plain_number))


def plain_number(value: float, position: int | None = None) -> str:
    """Return a tick label without an exponent.

    >>> [plain_number(value) for value in (0.00005, 0.05, 20.0, 200000.0)]
    ['0.00005', '0.05', '20', '200 000']
    """
    if abs(value) >= 1e3:
        return f"{value:,.0f}".replace(",", " ")
    return np.format_float_positional(float(f"{value:.6g}"), trim="-")
