"""Plots of one run: the headline of every level over rounds, and over uploaded bytes.

The plots use Figure objects instead of pyplot, so that they need no display and leave no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from hetfl.analysis.pictures import pictures_of, save_figure
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.theme import (
    FONT_POINTS,
    GREY,
    INK,
    LEADER,
    SMALL,
    Style,
    draw_chance,
    level_styles,
    log_name,
    log_ticks,
    plain,
    plain_number,
    rounds_axis,
    score_axis,
    text_sizes,
)
from hetfl.errors import ConfigurationError

UPLOADED = "Uploaded by all clients (MB)"
GLOBAL_STYLE = Style(INK, (0, (4, 2)), "x")
"""Style of the global model where it is none of the levels."""
BAND = 0.11
"""Fraction of the height of the axes, at the bottom, that stays free of curves and their labels."""


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes:
        label: name of the line.
        style: its colour, dashes and marker.
        x: positions of the rounds that have a score, shape (R,).
        y: scores, shape (R,).
        end: the last score as text.
    """

    label: str
    style: Style
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    end: str


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Return positions moved as little as possible so that they lie in [low, high] at distances of at least ``gap``.

    This is the least-squares solution: for sorted x_i, minimise Σ (z_i − x_i)² subject to z_{i+1} − z_i ≥ gap, which is
    isotonic regression on x_i − i·gap. If [low, high] is too short, the positions are evenly spaced.

    >>> spread([1.0, 1.0, 5.0], gap=1.0, low=0.0, high=9.0).tolist()
    [0.5, 1.5, 5.0]
    """
    wanted = np.asarray(positions, dtype=np.float64)
    if len(wanted) < 2:
        return wanted.clip(low, high)
    gap = min(gap, (high - low) / (len(wanted) - 1))
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(len(wanted))
    # A clipped isotonic fit is the fit under bounds; offsets[-1] reserves room for the positions above.
    fitted = isotonic_regression(wanted[order] - offsets).x.clip(low, high - offsets[-1])
    result = np.empty_like(wanted)
    result[order] = fitted + offsets
    return result


def score_curves(run: Run, over: NDArray[np.float64]) -> list[Curve]:
    """Return curves of the validation headline of each level and of the global model.

    The curve of the global model is left out if it equals the curve of a level, usually of the largest one.

    Args:
        run: the run.
        over: the x value of each round.

    Raises:
        ConfigurationError: the run has no validation headline.
    """
    levels = [level for level in run.levels if run.headline.column("val", level) in run.metrics.columns]
    styles = level_styles(levels)
    curves = [_curve(run, run.headline.column("val", level), level, styles[level], over) for level in levels]
    if run.headline.column("val") in run.metrics.columns or not curves:
        whole = _curve(run, run.headline.column("val"), "global", GLOBAL_STYLE, over)
        if not any(len(curve.y) == len(whole.y) and np.allclose(curve.y, whole.y) for curve in curves):
            curves.append(whole)
    curves = [curve for curve in curves if len(curve.y)]
    if not curves:
        raise ConfigurationError(
            f"Expected a validation {run.headline.words} in {run.folder / 'metrics.csv'} but got none"
        )
    return curves


def _curve(run: Run, column: str, label: str, style: Style, over: NDArray[np.float64]) -> Curve:
    score = np.asarray(run.series(column), dtype=np.float64)
    reported = np.isfinite(score) & ~np.isnan(over)
    end = run.headline.shown(score[reported][-1], 1) if reported.any() else ""
    return Curve(label, style, over[reported], run.headline.scale * score[reported], end)


def plot_score_over_rounds(run: Run, ax: Axes | None = None) -> Axes:
    """Plot the validation headline of every level over rounds.

    Args:
        run: the run.
        ax: axes to draw on; None: axes of a new figure, which is the ``figure`` attribute of the result.

    Raises:
        ConfigurationError: the run has no validation headline.
    """
    ax = _new_axes() if ax is None else ax
    curves = score_curves(run, np.asarray(run.series("step"), dtype=np.float64) + 1)  # round 0 is the first
    _draw(ax, curves, run)
    rounds_axis(ax)
    first, last = min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)
    ax.set_xlim(first, max(last, first + 1))
    _title(ax, run, f"Validation {run.headline.words} of each level over rounds")
    _label_line_ends(ax, curves)
    return ax


def plot_score_over_bytes(run: Run, ax: Axes | None = None) -> Axes:
    """Plot the validation headline of every level over the bytes that all clients have uploaded.

    A mark shows the bytes of the accepted updates as dense float32, Σ_t up_bytes(t) · up_ratio(t), and how many times
    the bytes of all uploads this is. Uploads also have statistics, answers and refused updates.

    Args:
        run: the run.
        ax: axes to draw on; None: axes of a new figure, which is the ``figure`` attribute of the result.

    Raises:
        ConfigurationError: the run has no validation headline, or lacks a column of ``comm/``.
    """
    ax = _new_axes() if ax is None else ax
    megabytes = np.asarray(run.series("comm/up_bytes_total"), dtype=np.float64) / 1e6
    curves = score_curves(run, megabytes)
    dense = float((run.series("comm/up_bytes") * run.series("comm/up_ratio")).sum()) / 1e6
    sent = float(np.nanmax(megabytes))
    _draw(ax, curves, run)
    # No bytes are counted in rounds whose updates were all refused.
    above = [curve.x[curve.x > 0][0] for curve in curves if (curve.x > 0).any()]
    if above:
        ax.set_xscale("log")
        ax.set_xlim(0.95 * min(above), 1.15 * max(dense, sent))
        log_ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(log_name(UPLOADED) if above else UPLOADED, fontsize=FONT_POINTS)
    _title(ax, run, f"Validation {run.headline.words} of each level over uploaded bytes")
    _mark_dense(ax, sent, dense)
    _label_line_ends(ax, curves)
    return ax


# Names of the first edition, in which every run had an accuracy.
plot_accuracy_over_rounds, plot_accuracy_over_bytes = plot_score_over_rounds, plot_score_over_bytes


def plot_run(folder: str | Path) -> list[Path]:
    """Write both plots of a run as PNG and SVG into its folder ``plots``, and return the files.

    Raises:
        ConfigurationError: the folder is not a run folder, or the run lacks a column that the plots need.
    """
    run = load_run(folder)
    target = run.folder / "plots"
    target.mkdir(exist_ok=True)
    files = []
    for name, draw in zip(pictures_of(run.headline), (plot_score_over_rounds, plot_score_over_bytes), strict=True):
        figure = draw(run).get_figure(root=True)
        assert figure is not None  # an Axes that was just made has one
        files += save_figure(figure, target, name)
    return files


def _new_axes() -> Axes:
    figure = Figure(figsize=(6.0, 3.8))
    figure.subplots_adjust(left=0.1, right=0.84, bottom=0.13, top=0.86)
    return figure.add_subplot()


def _draw(ax: Axes, curves: Sequence[Curve], run: Run) -> None:
    headline = run.headline
    for curve in curves:
        ax.plot(curve.x, curve.y, **curve.style.line(len(curve.x)), clip_on=len(curve.x) > 1)
    low, high = min(curve.y.min() for curve in curves), max(curve.y.max() for curve in curves)
    # If nothing changes, the axis spans 10 points, or a tenth of the score.
    margin = max(high - low, 10.0 if headline.percent else 0.1 * max(abs(low), abs(high)) or 1.0)
    ax.set_ylim(low - 0.16 * margin, high + 0.06 * margin)
    score_axis(ax, headline)
    plain(ax)
    text_sizes(ax)
    draw_chance(ax, run.chance, headline)


def _title(ax: Axes, run: Run, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=FONT_POINTS + 2, pad=20, parse_math=False)
    rounds = len(run.metrics)
    subtitle = f"run {run.folder.resolve().name}, {rounds} round{'s' if rounds != 1 else ''}"
    place = offset_copy(ax.transAxes, ax.get_figure(root=True), y=7, units="points")
    ax.text(0, 1, subtitle, transform=place, fontsize=FONT_POINTS, color=GREY, parse_math=False)


def _label_line_ends(ax: Axes, curves: Sequence[Curve]) -> None:
    """Write the name and last value of each curve beside its end, moved apart where ends are close."""
    low, high = ax.get_ylim()
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes are on one
    points = ax.get_window_extent().height * 72 / figure.get_dpi() / (high - low)  # per unit of the axis
    ends = [float(curve.y[-1]) for curve in curves]
    line = 1.3 * FONT_POINTS / points
    places = spread(ends, line, low + BAND * (high - low) + line / 2, high)
    for curve, end, place in zip(curves, ends, places, strict=True):
        ax.annotate(
            f"{curve.label}  {curve.end}",
            xy=(curve.x[-1], end),
            xytext=(16, (place - end) * points),
            textcoords="offset points",
            va="center_baseline",
            color=curve.style.colour,
            fontsize=FONT_POINTS,
            annotation_clip=False,
            arrowprops=LEADER | {"color": curve.style.colour},
        )


def _mark_dense(ax: Axes, sent: float, dense: float) -> None:
    """Mark the sent bytes, and the bytes of the updates as dense float32, in the band below the curves."""
    place = ax.get_xaxis_transform()
    ax.plot([dense, dense], [0, BAND / 2], transform=place, color=GREY, linewidth=1.0)
    text = f"the updates, dense float32: {plain_number(float(f'{dense:.3g}'))} MB"
    if dense > 1.05 * sent:
        ax.plot([sent, sent], [0, BAND / 2], transform=place, color=GREY, linewidth=1.0)
        ax.annotate(
            "",
            xy=(dense, BAND / 4),
            xytext=(sent, BAND / 4),
            xycoords=place,
            textcoords=place,
            arrowprops={"arrowstyle": "<->", "color": GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
        )
        text += f" ({dense / sent:.1f}× all uploads)"
    ax.annotate(
        text,
        xy=(dense, 0.55 * BAND),
        xytext=(-4, 0),
        xycoords=place,
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        color=GREY,
    )
