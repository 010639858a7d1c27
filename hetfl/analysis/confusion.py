"""Which classes a level takes for which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hetfl.analysis.figures import colour_bar, grid_figure
from hetfl.analysis.quality import check_classes
from hetfl.analysis.theme import FONT_POINTS, MAP


def confusion(logits_NK: Tensor, targets_N: Tensor) -> pd.DataFrame:
    """Return the share of the samples of each class that is taken for each class.

    Args:
        logits_NK: logits.
        targets_N: classes.

    Returns:
        Shape (K, K): a row per class (index ``class``), a column per predicted class; rows sum to 1, and are NaN for a
        class without samples.

    Raises:
        ConfigurationError: the outputs and targets are not those of a classification.
    """
    check_classes(logits_NK, targets_N)
    classes = logits_NK.shape[1]
    pairs_N = targets_N.long() * classes + logits_NK.argmax(-1)
    counts_KK = torch.bincount(pairs_N, minlength=classes * classes).reshape(classes, classes).double().numpy()
    totals_K1 = counts_KK.sum(1, keepdims=True)
    shares_KK = np.divide(counts_KK, totals_K1, out=np.full_like(counts_KK, np.nan), where=totals_K1 > 0)
    return pd.DataFrame(shares_KK).rename_axis(index="class", columns="predicted")


def plot_confusion(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the mistakes of several levels; right predictions are left out, so that the scale is that of mistakes.

    Args:
        tables: by name of a level, the result of :func:`confusion`.
    """
    figure, axes = grid_figure(
        "What is taken for what",
        "Look for bright cells: this share of the samples of the row's class is taken for the column's class. Look for "
        "cells that only small levels have.",
        len(tables),
        columns=4,
        side=1.9,
    )
    mistakes = {name: table.to_numpy() * (1 - np.eye(len(table))) for name, table in tables.items()}
    most = max(0.01, *(float(np.nanmax(values)) for values in mistakes.values()))
    for number, (ax, (name, values)) in enumerate(zip(axes, mistakes.items(), strict=True)):
        image = ax.imshow(100 * values, cmap=MAP, vmin=0, vmax=100 * most)
        ax.set_title(f"level {name}", fontsize=FONT_POINTS)
        ticks = range(0, len(values), max(1, len(values) // 5))
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
        ax.set_xlabel("predicted")
        ax.set_ylabel("" if number else "class")
    colour_bar(image, "% of the class", axes)
    return figure
