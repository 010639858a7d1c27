"""Figures of the similarity of levels and heads."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from hetfl.analysis.figures import colour_bar, new_figure, number_map
from hetfl.analysis.similarity import head_agreement


def plot_level_similarity(table: pd.DataFrame) -> Figure:
    """Draw the similarity of levels: a row per layer, a column per pair of levels.

    Args:
        table: the result of :func:`hetfl.analysis.level_similarity`.
    """
    pairs = table.assign(pair=table["level"] + "–" + table["other"])
    values = pairs.pivot_table("cka", "layer", "pair", sort=False, dropna=False)
    values = values.loc[pairs["layer"].unique(), pairs["pair"].unique()]
    figure, axes = new_figure(
        "Similarity of the levels' activations, layer by layer",
        "Look for the row where a column turns dark: above it two levels compute nearly the same, below it their "
        "activations differ.",
        width=max(2.8 + 0.55 * values.shape[1], 5.0),
        height=0.9 + 0.3 * len(values),
    )
    ax = axes[0, 0]
    image = number_map(
        ax,
        values.to_numpy(),
        rows=[str(name) for name in values.index],
        columns=[str(name) for name in values.columns],
        low=0.0,
        high=1.0,
        form=".2f",
    )
    ax.set_xlabel("Pair of levels")
    colour_bar(image, "Linear CKA", ax)
    return figure


def plot_heads(logits_HNK: Tensor) -> Figure:
    """Draw the fraction of samples on which two heads of a multi-exit net predict the same class.

    Args:
        logits_HNK: logits of all heads for the same samples, the shallowest first.
    """
    agreement = 100 * head_agreement(logits_HNK).numpy()
    names = [str(number) for number in range(1, len(agreement) + 1)]
    figure, axes = new_figure(
        "Agreement of the heads",
        "Look for the darkest cell: these two heads (1 is the shallowest) differ most often, and their mean may be "
        "better than each of them.",
        width=4.6,
        height=1.0 + 0.45 * len(agreement),
    )
    ax, lowest = axes[0, 0], float(agreement.min())
    image = number_map(ax, agreement, rows=names, columns=names, low=min(lowest, 99.0), high=100.0, form=".1f")
    ax.set_xlabel("Head")
    ax.set_ylabel("Head")
    colour_bar(image, "Same prediction (% of samples)", ax)
    return figure
