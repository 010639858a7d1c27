"""Figures of the quality of the predictions of levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from hetfl.analysis.figures import colour_bar, grid_figure, label_ends, new_figure, number_map
from hetfl.analysis.quality import calibration_error, reliability
from hetfl.analysis.runs import Run
from hetfl.analysis.theme import (
    FONT_POINTS,
    GREY,
    INK,
    WRONG,
    draw_chance,
    group_styles,
    level_colours,
    plain,
    rounds_axis,
    score_axis,
)
from hetfl.errors import ConfigurationError
from hetfl.runs.headline import common_headline

Over = Literal["step", "comm/up_bytes_total", "comm/bytes_total", "compute/flops_total"]
_AXES: dict[Over, tuple[str, float, tuple[str, ...]]] = {
    "step": ("Rounds done", 1.0, ("step",)),
    "comm/up_bytes_total": ("Uploaded by all clients (MB)", 1e6, ("comm/up_bytes_total",)),
    "comm/bytes_total": ("Sent both ways (MB)", 1e6, ("comm/up_bytes_total", "comm/down_bytes_total")),
    "compute/flops_total": ("Computed by all clients (GFLOP)", 1e9, ("compute/flops_total",)),
}
"""What is to the right: in words, its unit, and the columns that add up to it."""


def plot_predictions(images_NHW: Tensor, predicted_N: Tensor, targets_N: Tensor) -> Figure:
    """Draw grey images with the predicted classes.

    Args:
        images_NHW: images; the largest value is white.
        predicted_N: predicted classes.
        targets_N: true classes.

    Raises:
        ConfigurationError: the predictions or targets are floats.
    """
    if predicted_N.is_floating_point() or targets_N.is_floating_point():
        raise ConfigurationError(
            f"Expected classes, whole numbers, but got {predicted_N.dtype} predictions of {targets_N.dtype} targets"
        )
    columns = min(8, len(images_NHW))
    figure, axes = grid_figure(
        "Predictions of the sub-model",
        "Look for coloured labels: these predictions are wrong, and the true class follows the prediction.",
        len(images_NHW),
        columns=columns,
        side=0.8,
    )
    for ax, image_HW, predicted, target in zip(
        axes, images_NHW.numpy(), predicted_N.tolist(), targets_N.tolist(), strict=True
    ):
        ax.imshow(image_HW, cmap="gray")
        ax.set(xticks=[], yticks=[])
        right = predicted == target
        ax.set_title(
            f"{predicted}" if right else f"{predicted}, not {target}",
            fontsize=FONT_POINTS,
            color=INK if right else WRONG,
            pad=2,
        )
    return figure


def plot_comparison(runs: Mapping[str, Run], over: Over = "step") -> Figure:
    """Draw the validation headline of several runs, one panel per level that all runs have.

    Args:
        runs: runs by name.
        over: the column of ``metrics.csv`` on the x axis; ``comm/bytes_total`` is the sum of both directions.

    Raises:
        ConfigurationError: the runs have different headlines or no common level, or a run lacks the column or has no
            score of a level.
    """
    headline = common_headline({name: run.headline for name, run in runs.items()})
    first, *others = runs.values()
    levels = [level for level in first.levels if all(level in run.levels for run in others)]
    if not levels:
        raise ConfigurationError(
            f"Expected a level that all runs have but got {'; '.join(', '.join(run.levels) for run in runs.values())}"
        )
    figure, axes = new_figure(
        f"{headline.heading} of each level, for each run",
        f"Look for the line that is {'on top' if headline.higher_is_better else 'lowest'} in all panels: that run is "
        "best at every size. Where lines cross, the best run depends on the size or on the length of training.",
        height=0.5 + 1.5 * len(levels),
        rows=len(levels),
    )
    label, unit, columns = _AXES[over]
    styles = group_styles(list(runs))
    for ax, level in zip(axes[:, 0], levels, strict=True):
        ends, colours = {}, {}
        if ax is not axes[0, 0]:
            ax.sharey(axes[0, 0])
        for name, run in runs.items():
            score = _validated(run, level)
            y = headline.scale * score
            x = pd.concat([run.series(column)[y.index] for column in columns], axis=1).sum(axis=1) / unit
            x = x + (over == "step")  # round 0 is the first
            ax.plot(x, y, **styles[name].line(len(x)))
            text = f"{name} {headline.shown(score.iloc[-1], 1)}"
            ends[text], colours[text] = (float(x.iloc[-1]), float(y.iloc[-1])), styles[name].colour
        ax.set_xlim(left=0)
        ax.set_title(f"level {level}", fontsize=FONT_POINTS, loc="left")
        score_axis(ax, headline)
        if over == "step":
            rounds_axis(ax)
        ax.set_xlabel(label if ax is axes[-1, 0] else "")
        plain(ax)
        label_ends(ax, ends, colours)
        draw_chance(ax, first.chance, headline)
    return figure


def _validated(run: Run, level: str) -> pd.Series[float]:
    """Return the validation headline of a level in the rounds that have one."""
    score = run.series(run.headline.column("val", level)).dropna()
    if score.empty:
        wanted = f"a validation {run.headline.words} of level {level}"
        raise ConfigurationError(f"Expected {wanted} in {run.folder / 'metrics.csv'} but got none")
    return score


def plot_reliability(logits: Mapping[str, Tensor], targets_N: Tensor, bins: int = 10) -> Figure:
    """Draw a reliability diagram per level: accuracy against confidence, with the expected calibration error.

    Args:
        logits: per level, logits (N, K).
        targets_N: classes.
        bins: number of bins.
    """
    figure, axes = grid_figure(
        "Calibration of each level",
        "Look for bars below the diagonal, where the confidence of a level is too high, and above it, where it is too "
        "low. The area of a dot is the share of samples in its bin.",
        len(logits),
        columns=3,
        side=2.3,
    )
    for ax, (level, colour) in zip(axes, level_colours(list(logits)).items(), strict=True):
        table = reliability(logits[level], targets_N, bins)
        centre = 50 * (table["low"] + table["high"])
        ax.bar(centre, 100 * table["accuracy"], width=90 / bins, color=colour, alpha=0.35)
        size = 200 * table["samples"] / len(targets_N)
        ax.scatter(100 * table["confidence"], 100 * table["accuracy"], s=size, color=colour, clip_on=False, zorder=3)
        ax.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        error = calibration_error(logits[level], targets_N, bins)
        ax.set_title(f"level {level}: error {100 * error:.1f} points", fontsize=FONT_POINTS)
        ax.set(xlim=(0, 102), ylim=(0, 104), xlabel="Confidence (%)", ylabel="Accuracy (%)")
        plain(ax)
    return figure


def plot_class_accuracy(table: pd.DataFrame) -> Figure:
    """Draw the accuracy of each level on each class: a row per class, a column per level.

    Args:
        table: the result of :func:`hetfl.analysis.class_accuracy`.
    """
    percent = 100 * table.to_numpy()
    figure, axes = new_figure(
        "Accuracy on each class",
        "Look for dark cells: the model has not learnt this class. Look for rows that change from column to column: "
        "the accuracy on these classes depends on the size.",
        width=max(2.2 + 0.7 * table.shape[1], 5.0),
        height=0.8 + 0.26 * len(table),
    )
    ax = axes[0, 0]
    image = number_map(
        ax,
        percent,
        rows=[str(name) for name in table.index],
        columns=[str(name) for name in table.columns],
        low=min(10 * np.floor(np.nanmin(percent) / 10), 90.0),
        high=100.0,
        form=".0f",
    )
    ax.set_ylabel("Class")
    colour_bar(image, "Samples classified correctly (%)", ax)
    return figure
