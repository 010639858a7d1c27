"""The figure of the trade-off: the last score of each group over all bytes that it uploaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetfl.analysis.theme import (
    FONT_POINTS,
    GREY,
    LEADER,
    SMALL,
    Style,
    draw_chance,
    log_name,
    log_ticks,
    plain,
    score_axis,
    text_sizes,
)
from hetfl.report.figures import LETTER, WIDTH, figure_of, mark_of
from hetfl.report.material import Material
from hetfl.report.panels import Drawing
from hetfl.report.series import BYTES, GLOBAL, final_amount
from hetfl.report.spread import Spread, spread_of
from hetfl.runs.headline import Headline

NEAR = 12.0
"""Distance in points up to which a name needs no line to its point."""
FEWEST = 3
"""Smallest number of groups for which the figure is drawn."""
HEIGHT = 4.0
ALIGNED = {-1: "right", 0: "center", 1: "left"}
"""Alignment of a name by its horizontal place relative to its point."""
UPWARDS = (11.0, -11.0, 20.0, -20.0, 29.0, -29.0, 38.0, -38.0, 50.0, -50.0)
"""Vertical distances of a name from its point that are tried, in points."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A group in the figure.

    Attributes:
        name: its name.
        spent: all uploaded bytes of a run.
        score: the score of the global model in the round in which groups are compared.
    """

    name: str
    spent: Spread
    score: Spread

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the spread of the score."""
        return self.score.low, self.score.high


def points_of(material: Material) -> list[Point]:
    """Return the groups that have a finite score and count their uploads, from the fewest bytes to the most.

    Of groups with equal bytes that with the better score comes first.
    """
    points, sign = [], -1.0 if material.headline.higher_is_better else 1.0
    for group in material.spending(BYTES):
        spent = spread_of([final_amount(run, BYTES.column) for run in group.runs])
        score = material.final(group, GLOBAL)
        if spent is not None and score is not None and isfinite(score.mean):
            points.append(Point(group.name, spent, score))
    return sorted(points, key=lambda point: (point.spent.mean, sign * point.score.mean))


def front_of(headline: Headline, points: Sequence[Point]) -> list[Point]:
    """Return the points that no point with as few bytes surpasses in the mean.

    Args:
        headline: the score.
        points: in the order of :func:`points_of`, which the result has, too.
    """
    front: list[Point] = []
    for point in points:
        if not front or headline.better(point.score.mean, front[-1].score.mean):
            front.append(point)
    return front


def score_at_bytes(material: Material, styles: Mapping[str, Style]) -> Drawing | None:
    """Draw the score of the global model of every group over its uploaded bytes; None for few groups."""
    points = points_of(material)
    if len(points) < FEWEST:
        return None
    numbers = list(_numbers(material.headline, points))
    return Drawing(draw_points(points, material.headline, styles, material.chance), numbers, numbers)


def draw_points(
    points: Sequence[Point], headline: Headline, styles: Mapping[str, Style], chance: float | None = None
) -> Figure:
    """Draw points with their spread and their names, and a dashed line through those of :func:`front_of`.

    Args:
        points: at least one point, in the order of :func:`points_of`.
        headline: the score of the vertical axis.
        styles: the style of each point, by name.
        chance: the score of guessing; None: unknown.
    """
    figure, scale = Figure(figsize=(WIDTH, HEIGHT)), headline.scale
    figure.subplots_adjust(left=0.62 / WIDTH, right=1 - 0.12 / WIDTH, bottom=0.5 / HEIGHT, top=1 - 0.12 / HEIGHT)
    ax = figure.add_subplot()
    for point in points:
        style, (x, y) = styles[point.name], _place(point, scale)
        ends = [[scale * abs(end - point.score.mean)] for end in (point.score.low, point.score.high)]
        sides = [[abs(end - point.spent.mean) / 1e6] for end in (point.spent.low, point.spent.high)]
        ax.errorbar(x, y, ends, sides, fmt="none", ecolor=style.colour, elinewidth=1.0, alpha=0.6)
        mark = mark_of(list(styles).index(point.name))
        ax.plot(x, y, marker=style.marker, color=style.colour, markersize=6, linestyle="", gid=mark)
    xs, ys = zip(*(_place(point, scale) for point in front_of(headline, points)), strict=True)
    ax.plot(xs, ys, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), drawstyle="steps-post", zorder=0.9)
    _set_axes(ax, headline, points)
    draw_chance(ax, chance, headline)
    _name_points(ax, headline, points, styles)
    return figure


def _numbers(headline: Headline, points: Sequence[Point]) -> Iterator[list[str]]:
    yield ["panel", "group", "seed", BYTES.axis, headline.in_unit(headline.heading)]
    for point in points:
        x, y = _place(point, headline.scale)
        yield ["", point.name, "mean", f"{x:.6g}", f"{y:.6g}"]


def _set_axes(ax: Axes, headline: Headline, points: Sequence[Point]) -> None:
    low, high = min(point.spent.low for point in points) / 1e6, max(point.spent.high for point in points) / 1e6
    ax.margins(y=0.12)
    plain(ax)
    text_sizes(ax)
    if low > 0 and high > 2 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, high * 1.3)
        log_ticks(ax.xaxis, low / 1.3, high * 1.3)
        ax.set_xlabel(log_name(BYTES.axis), fontsize=FONT_POINTS)
    else:
        ax.set_xlabel(BYTES.axis, fontsize=FONT_POINTS)
    score_axis(ax, headline)


def _name_points(ax: Axes, headline: Headline, points: Sequence[Point], styles: Mapping[str, Style]) -> None:
    """Write the name of each group beside its point, where no other name or point is."""
    unit = 72 / figure_of(ax).get_dpi()
    transform = ax.transData.transform
    places = {point: tuple(unit * transform(_place(point, headline.scale))) for point in points}
    frame = ax.get_window_extent()
    inside = (unit * frame.x0, unit * frame.y0, unit * frame.x1, unit * frame.y1)
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
    for point in points:
        (x, low), (_, high) = (unit * transform((point.spent.mean / 1e6, headline.scale * end)) for end in point.ends)
        taken.append((x - 1, low, x + 1, high))
    for point, (x, y) in places.items():
        width, height = 72 * LETTER * len(point.name), 1.2 * SMALL
        side, up = min(_sides(), key=lambda at: _trouble(_box(x, y, width, height, *at), taken, inside) + abs(at[1]))
        taken.append(_box(x, y, width, height, side, up))
        ax.annotate(
            point.name,
            xy=_place(point, headline.scale),
            xytext=(6 * side, up),
            textcoords="offset points",
            ha=ALIGNED[side],
            va="center",
            fontsize=SMALL,
            color=styles[point.name].colour,
            parse_math=False,
            arrowprops=_leader(side, styles[point.name].colour) if abs(up) > NEAR else None,
        )


def _place(point: Point, scale: float) -> tuple[float, float]:
    return point.spent.mean / 1e6, scale * point.score.mean


def _leader(side: int, colour: str) -> dict[str, Any]:
    """Return the style of the line from a name to its point: it begins at the side of the name that faces the point."""
    return LEADER | {"color": colour, "relpos": ((1 - side) / 2, 0.5)}


def _sides() -> list[tuple[int, float]]:
    """Return places of a name relative to its point: the side, and points of the page upwards; the best first."""
    return [(1, 0.0), (-1, 0.0), *((side, up) for up in UPWARDS for side in (1, -1, 0))]


def _box(x: float, y: float, width: float, height: float, side: int, up: float) -> Box:
    left = x + 6 * side - width * (1 - side) / 2
    return (left, y + up - height / 2, left + width, y + up + height / 2)


def _trouble(box: Box, taken: Sequence[Box], inside: Box) -> float:
    """Return the area of a box that is taken or outside of the axes."""
    covered = sum(_common(box, other) for other in taken)
    return covered + 3 * ((box[2] - box[0]) * (box[3] - box[1]) - _common(box, inside))


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
