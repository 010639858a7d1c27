"""The figure of an upload budget: what was planned and spent, the threshold, and each level's density."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetfl.analysis.figures import label_ends, new_figure
from hetfl.analysis.pictures import BUDGET_COLUMNS, had_budget, save_figure
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.theme import GREY, INK, SMALL, level_styles, plain, rounds_axis
from hetfl.errors import ConfigurationError

DENSITY = "budget/density_by_level/"
UNITS = {"budget/spent_bytes": (1e6, "MB"), "budget/spent_entries": (1e6, "million entries")}
"""Of what is budgeted: by how much to divide, and its name."""


def plot_budget(run: Run) -> Figure:
    """Draw the planned and the spent budget, the threshold λ, and the density of each level over rounds.

    Args:
        run: the run.

    Raises:
        ConfigurationError: the run had no budget.
    """
    spent = next((name for name in BUDGET_COLUMNS if name in run.metrics.columns), None)
    if spent is None:
        raise ConfigurationError(
            f"Expected columns of a budget in {run.folder / 'metrics.csv'} but got none: has its compressor a budget?"
        )
    figure, axes = new_figure(
        "Uploads under a budget",
        "Look for a spent line that stays near the planned one, and for a threshold that moves little: a threshold "
        "that falls late releases old residuals when the steps are too small to use them.",
        width=9.0,
        height=2.7,
        columns=3,
    )
    rounds = np.asarray(run.series("step"), dtype=np.float64) + 1
    _draw_spent(axes[0, 0], run, spent, rounds)
    _draw_threshold(axes[0, 1], run, rounds)
    _draw_densities(axes[0, 2], run, rounds)
    for ax in cast(list[Axes], list(axes.flat)):
        plain(ax)
        rounds_axis(ax, ticks=5)
    return figure


def _draw_spent(ax: Axes, run: Run, column: str, rounds: NDArray[np.float64]) -> None:
    divisor, unit = UNITS[column]
    for name, key, style in (("planned", column.replace("spent", "planned"), "--"), ("spent", column, "-")):
        values = np.asarray(run.series(key), dtype=np.float64) / divisor
        ax.plot(rounds, values, style, color=GREY if name == "planned" else INK, linewidth=1.3, label=name)
    ax.set_ylabel(f"Uploaded ({unit})")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=SMALL, loc="lower right")


def _draw_threshold(ax: Axes, run: Run, rounds: NDArray[np.float64]) -> None:
    ax.set_ylabel("Threshold λ")
    if "threshold" not in run.metrics.columns:  # the run ended before one was known
        return
    values = np.asarray(run.series("threshold"), dtype=np.float64)
    known = np.isfinite(values)
    ax.plot(rounds[known], values[known], color=INK, linewidth=1.3)
    ax.set_ylim(bottom=0)


def _draw_densities(ax: Axes, run: Run, rounds: NDArray[np.float64]) -> None:
    ax.set_ylabel("Entries sent (%)")
    names = [str(column) for column in run.metrics.columns if str(column).startswith(DENSITY)]
    levels = [level for level in run.levels if DENSITY + level in names]
    levels += [name.removeprefix(DENSITY) for name in names if name.removeprefix(DENSITY) not in levels]
    styles, ends = level_styles(levels), {}
    for level in levels:
        values = 100 * np.asarray(run.series(DENSITY + level), dtype=np.float64)
        known = np.isfinite(values) & (values > 0)
        if known.any():
            ax.plot(rounds[known], values[known], **styles[level].line(int(known.sum()), width=1.1))
            ends[level] = (rounds[known][-1], values[known][-1])
    if ends:
        ax.set_ylim(bottom=0)
        ax.set_xlim(right=rounds[-1])
        label_ends(ax, ends, {level: style.colour for level, style in styles.items()})


def draw_budget(folder: str | Path) -> list[Path]:
    """Write the figure of a run that had a budget into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: the run's ``metrics.csv`` can't be read.
    """
    if not had_budget(Path(folder)):
        return []
    run = load_run(folder)
    target = run.folder / "plots"
    target.mkdir(exist_ok=True)
    return save_figure(plot_budget(run), target, "budget")
