"""What a figure of a report shows: panels with a line per group, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetfl.report.series import Band
from hetfl.runs.headline import Headline

MOST_POINTS, FEWEST = 6000, 20
"""Maximum number of points in a figure of the page, and of points of a line that are kept in any case."""
MEAN = "mean"
"""Name of the mean over seeds among the names of seeds."""


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
        rounds: whether the horizontal axis has rounds, from 1.
        log: whether the horizontal axis is logarithmic; None: if the ends of groups differ by a factor of 4.
        log_y: whether the vertical axis is logarithmic.
        steps: whether lines are step functions.
        points: whether points are marked, with bars for the spread.
        shares: whether values of the vertical axis are shares, which are shown as percentages.
        chance: the score of guessing, in the unit of ``metrics.csv``; None: unknown.
        height: height of panels in a single row, in inches.
    """

    x: str
    y: str = "Accuracy (%)"
    scale: float = 1.0
    rounds: bool = False
    log: bool | None = None
    log_y: bool = False
    steps: bool = False
    points: bool = False
    shares: bool = True
    chance: float | None = None
    height: float = 2.1

    def of(self, headline: Headline, chance: float | None = None) -> Axis:
        """Return the same axes with a headline on the vertical axis."""
        return replace(self, y=headline.in_unit(headline.heading), shares=headline.percent, chance=chance)

    def shown(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values in the unit of the vertical axis."""
        return 100 * values if self.shares else values


def lines_of(name: str, band: Band) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield the lines of a group: the name of the seed, or :data:`MEAN`, and the points."""
    yield MEAN, band.x, band.mean
    for seed, (x, y) in band.seeds.items():
        yield seed, x, y


def numbers_of(panels: Sequence[Panel], axis: Axis) -> list[list[str]]:
    """Return the numbers of a figure: the head, and a row per point of the lines of means and seeds.

    Numbers have six significant digits, in the units of the axes.
    """
    rows = [["panel", "group", "seed", axis.x, axis.y]]
    for panel in panels:
        for name, band in panel.bands.items():
            for seed, x, y in lines_of(name, band):
                shown = zip((x / axis.scale).tolist(), axis.shown(y).tolist(), strict=True)
                rows += [[panel.title, name, seed, f"{one:.6g}", f"{other:.6g}"] for one, other in shown]
    return rows


@dataclass(frozen=True)
class Drawing:
    """A figure of a report, and its numbers.

    Attributes:
        figure: the figure.
        numbers: its numbers as a table: a head and rows.
        shown: the numbers of the points that are drawn, with the columns of :func:`numbers_of`, if the figure has lines
            with marks, and an axes for each panel in their order; empty otherwise.
    """

    figure: Figure
    numbers: Sequence[Sequence[str]]
    shown: Sequence[Sequence[str]] = ()


def thinned(panels: Sequence[Panel]) -> list[Panel]:
    """Return panels whose lines have at most :data:`MOST_POINTS` points together, at even distances, with both ends."""
    lines = [x for panel in panels for name, band in panel.bands.items() for _, x, _ in lines_of(name, band)]
    most = max(FEWEST, MOST_POINTS // max(len(lines), 1))
    return [Panel(each.title, {name: _thin(band, most) for name, band in each.bands.items()}) for each in panels]


def _thin(band: Band, most: int) -> Band:
    def places(x: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(np.int64))

    at = places(band.x)
    mean, low, high = (values[at] for values in (band.mean, band.low, band.high))
    return Band(
        band.x[at], mean, low, high, band.n, {name: (x[places(x)], y[places(x)]) for name, (x, y) in band.seeds.items()}
    )
