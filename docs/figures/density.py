"""Draw the density of uploads over rounds of several runs: density.py OUT.png LABEL=RUN [LABEL=RUN ...]."""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hetfl.analysis import load_run
from hetfl.analysis.plots import spread


def main(target: str, *named_runs: str) -> None:
    """Write the picture.

    Args:
        target: the PNG file.
        named_runs: per run a label, an equals sign and its folder.
    """
    figure = Figure(figsize=(6.0, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    shades = matplotlib.colormaps["viridis"]([0.0, 0.4, 0.75])
    names = [named.split("=", 1)[0] for named in named_runs]
    runs = [load_run(named.split("=", 1)[1]) for named in named_runs]
    ends = [100 * float(run.series("comm/up_density").iloc[-1]) for run in runs]
    places = 10 ** spread(np.log10(ends), gap=0.25, low=-3.0, high=2.0)
    for label, run, place, color in zip(names, runs, places, shades, strict=True):
        rounds, density = run.series("step"), 100 * run.series("comm/up_density")
        upper.plot(rounds, density, color=color, linewidth=1.6)
        upper.annotate(f"  {label}", (rounds.iloc[-1], place), color=color, va="center", annotation_clip=False)
        threshold = run.series("threshold")
        lower.plot(rounds, threshold / threshold.dropna().iloc[0], color=color, linewidth=1.6)
    upper.axhline(5.0, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    upper.annotate(" asked for", (0, 5.0), (0, -10), textcoords="offset points", color="0.4", fontsize=8)
    upper.set_yscale("log")
    upper.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    upper.set_ylabel("Entries sent (%)")
    lower.set_ylabel("Threshold λ/λ0")
    lower.set_xlabel("Round")
    upper.set_title("Residuals are released as the threshold falls", loc="left")
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.92", linewidth=0.8)
    figure.subplots_adjust(left=0.12, right=0.85, top=0.92, bottom=0.1, hspace=0.12)
    figure.savefig(target, dpi=180)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: density.py OUT.png LABEL=RUN LABEL=RUN LABEL=RUN")
    main(*sys.argv[1:])
