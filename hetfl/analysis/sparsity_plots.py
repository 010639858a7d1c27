"""The headline over the density of masks that change it: a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetfl.analysis.figures import label_ends, new_figure
from hetfl.analysis.pictures import DENSITY_COLUMN, had_density, save_figure
from hetfl.analysis.plots import Curve, score_curves
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.theme import FONT_POINTS, draw_chance, log_name, log_ticks, plain, score_axis
from hetfl.errors import ConfigurationError


def score_over_density(run: Run) -> pd.DataFrame:
    """Return the validation headline of the global model at each density that the masks of a run had.

    The columns are ``density``; ``rounds``, the number of validated rounds in which the masks ended with it; ``last``
    and ``best``, the headline after the last and the best of them. Rows are in the order of the run.

    Args:
        run: the run.

    Raises:
        ConfigurationError: the run has no column of the density, or no validation headline.
    """
    headline = run.headline
    known = pd.DataFrame({"density": _density(run), "score": run.series(headline.column("val"))}).dropna()
    if known.empty:
        raise ConfigurationError(f"Expected a validation {headline.words} in {run.folder / 'metrics.csv'} but got none")
    scores = known.groupby("density", sort=False)["score"]
    best = scores.max() if headline.higher_is_better else scores.min()
    return pd.DataFrame({"rounds": scores.size(), "last": scores.last(), "best": best}).reset_index()


def plot_sparsity(run: Run) -> Figure:
    """Draw the validation headline of every level over the density of the masks.

    Points are rounds. A line goes through the last round at each density.

    Args:
        run: the run.

    Raises:
        ConfigurationError: the run has no column of the density, or no validation headline.
    """
    curves = _distinct(score_curves(run, 100 * np.asarray(_density(run), dtype=np.float64)))
    figure, axes = new_figure(
        f"Validation {run.headline.words} over the density of the masks",
        "Points are rounds; the line goes through the last round at each density. Look for the density below which the "
        "line falls.",
    )
    ax: Axes = axes[0, 0]
    for curve in curves:
        look: dict[str, Any] = {"marker": curve.style.marker, "markersize": 3, "alpha": 0.35, "markeredgewidth": 0}
        ax.plot(curve.x, curve.y, linestyle="", color=curve.style.colour, **look)
        last = [i for i in range(len(curve.x)) if i + 1 == len(curve.x) or curve.x[i + 1] != curve.x[i]]
        ax.plot(curve.x[last], curve.y[last], **curve.style.line(len(last)))
    _set_scale(ax, np.concatenate([curve.x for curve in curves]))
    ax.set_xlabel(log_name("Weights held (%)"), fontsize=FONT_POINTS)
    score_axis(ax, run.headline)
    plain(ax)
    draw_chance(ax, run.chance, run.headline)
    ends = {f"{curve.label}  {curve.end}": (float(curve.x[-1]), float(curve.y[-1])) for curve in curves}
    label_ends(ax, ends, {f"{curve.label}  {curve.end}": curve.style.colour for curve in curves})
    return figure


def draw_sparsity(folder: str | Path) -> list[Path]:
    """Write the figure of a run whose masks change their density into its folder ``plots``; return the files.

    Raises:
        ConfigurationError: the run's ``metrics.csv`` can't be read, or has no validation headline.
    """
    if not had_density(Path(folder)):
        return []
    run = load_run(folder)
    target = run.folder / "plots"
    target.mkdir(exist_ok=True)
    return save_figure(plot_sparsity(run), target, "sparsity")


def _density(run: Run) -> pd.Series[float]:
    if DENSITY_COLUMN not in run.metrics.columns:
        raise ConfigurationError(
            f"Expected column {DENSITY_COLUMN!r} in {run.folder / 'metrics.csv'} but got none: does the density of its "
            "masks change?"
        )
    return run.series(DENSITY_COLUMN)


def _distinct(curves: list[Curve]) -> list[Curve]:
    """Return curves without repetitions; a curve that stands for several has their labels."""
    distinct: list[Curve] = []
    for curve in curves:
        for i, other in enumerate(distinct):
            if np.array_equal(curve.x, other.x) and np.array_equal(curve.y, other.y):
                label = f"{other.label}, {curve.label}"
                distinct[i] = Curve(label, other.style, other.x, other.y, other.end)
                break
        else:
            distinct.append(curve)
    return distinct


def _set_scale(ax: Axes, densities: NDArray[np.float64]) -> None:
    """Set a logarithmic axis on which density falls to the right."""
    low, high = float(densities.min()), float(densities.max())
    ax.set_xscale("log")
    ax.set_xlim(1.05 * high, low / 1.05)
    log_ticks(ax.xaxis, low / 1.05, 1.05 * high)
