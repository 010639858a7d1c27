"""The figure of the trade-off: the last score of each group over all bytes that it uploaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetfl.analysis.theme import (
    FONT_POINTS,
    GREY,
    SMALL,
    Style,
    draw_chance,
    log_name,
    log_ticks,
    plain,
    score_axis,
    text_sizes,
)
from hetfl.report.figures import LETTER, WIDTH, mark_of
from hetfl.report.material import Material
from hetfl.report.panels import Drawing
from hetfl.report.series import BYTES, GLOBAL, final_amount
from hetfl.report.spread import Spread, spread_of

FEWEST = 3
"""Smallest number of groups for which the figure is drawn."""
HEIGHT = 3.4
ALIGNED = {-1: "right", 0: "center", 1: "left"}
"""Alignment of a name by its horizontal place relative to its point."""
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


def points_of(material: Material) -> list[Point]:
    """Return the groups that have a score and count their uploads, from the fewest bytes to the most."""
    points = []
    for group in material.spending(BYTES):
        spent = spread_of([final_amount(run, BYTES.column) for run in group.runs])
        score = material.final(group, GLOBAL)
        if spent is not None and score is not None:
            points.append(Point(group.name, spent, score))
    return sorted(points, key=lambda point: point.spent.mean)


def front_of(material: Material, points: Sequence[Point]) -> list[Point]:
    """Return the points than which no point with fewer bytes has a better mean, from the fewest bytes to the most."""
    front: list[Point] = []
    for point in points:
        if not front or material.headline.better(point.score.mean, front[-1].score.mean):
            front.append(point)
    return front


def score_at_bytes(material: Material, styles: Mapping[str, Style]) -> Drawing | None:
    """Draw the score of the global model of every group over its uploaded bytes; None for few groups."""
    points = points_of(material)
    if len(points) < FEWEST:
        return None
    headline, numbers = material.headline, list(styles)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.subplots_adjust(left=0.62 / WIDTH, right=1 - 0.12 / WIDTH, bottom=0.5 / HEIGHT, top=1 - 0.12 / HEIGHT)
    ax = figure.add_subplot()
    for point in points:
        style, place = styles[point.name], numbers.index(point.name)
        x, y = point.spent.mean / 1e6, headline.scale * point.score.mean
        ends = [[headline.scale * abs(end - point.score.mean)] for end in (point.score.low, point.score.high)]
        sides = [[abs(end - point.spent.mean) / 1e6] for end in (point.spent.low, point.spent.high)]
        ax.errorbar(x, y, ends, sides, fmt="none", ecolor=style.colour, elinewidth=1.0, alpha=0.6)
        ax.plot(x, y, marker=style.marker, color=style.colour, markersize=6, linestyle="", gid=mark_of(place))
    front = front_of(material, points)
    line = [point.spent.mean / 1e6 for point in front], [headline.scale * point.score.mean for point in front]
    ax.plot(*line, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), drawstyle="steps-post", zorder=0.9)
    _set_axes(ax, material, points)
    _name_points(ax, material, points, styles)
    numbers = list(_numbers(material, points))
    return Drawing(figure, numbers, numbers)


def _numbers(material: Material, points: Sequence[Point]) -> Iterator[list[str]]:
    yield ["panel", "group", "seed", BYTES.axis, material.headline.in_unit(material.headline.heading)]
    for point in points:
        score = material.headline.scale * point.score.mean
        yield ["", point.name, "mean", f"{point.spent.mean / 1e6:.6g}", f"{score:.6g}"]


def _set_axes(ax: Axes, material: Material, points: Sequence[Point]) -> None:
    low, high = min(point.spent.low for point in points) / 1e6, max(point.spent.high for point in points) / 1e6
    plain(ax)
    text_sizes(ax)
    if low > 0 and high > 2 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, high * 1.3)
        log_ticks(ax.xaxis, low / 1.3, high * 1.3)
        ax.set_xlabel(log_name(BYTES.axis), fontsize=FONT_POINTS)
    else:
        ax.set_xlabel(BYTES.axis, fontsize=FONT_POINTS)
    score_axis(ax, material.headline)
    draw_chance(ax, material.chance, material.headline)


def _name_points(ax: Axes, material: Material, points: Sequence[Point], styles: Mapping[str, Style]) -> None:
    """Write the name of each group beside its point, where no other name or point is."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes are made on one
    unit = 72 / figure.get_dpi()
    places = {point: tuple(unit * ax.transData.transform(_place(point, material.headline.scale))) for point in points}
    frame = ax.get_window_extent()
    inside = (unit * frame.x0, unit * frame.y0, unit * frame.x1, unit * frame.y1)
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places.values()]
    for point, (x, y) in places.items():
        width, height = 72 * LETTER * len(point.name), 1.2 * SMALL
        side, up = min(_sides(), key=lambda at: _trouble(_box(x, y, width, height, *at), taken, inside))
        taken.append(_box(x, y, width, height, side, up))
        ax.annotate(
            point.name,
            xy=_place(point, material.headline.scale),
            xytext=(6 * side, up),
            textcoords="offset points",
            ha=ALIGNED[side],
            va="center",
            fontsize=SMALL,
            color=styles[point.name].colour,
            parse_math=False,
        )


def _place(point: Point, scale: float) -> tuple[float, float]:
    return point.spent.mean / 1e6, scale * point.score.mean


def _sides() -> list[tuple[int, float]]:
    """Return places of a name relative to its point: the side, and points of the page upwards; the best first."""
    return [(1, 0.0), (-1, 0.0), *((side, up) for up in (10.0, -10.0, 19.0, -19.0, 28.0, -28.0) for side in (1, -1, 0))]


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
