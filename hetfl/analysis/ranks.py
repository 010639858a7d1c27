"""The singular values of the products of low-rank factors over rounds, which show whether large ranks collapse."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hetfl.analysis.figures import new_figure
from hetfl.analysis.snapshot_reader import RunSnapshots
from hetfl.analysis.theme import FONT_POINTS, SMALL, level_styles, log_name, log_ticks, plain, rounds_axis
from hetfl.errors import ConfigurationError
from hetfl.factors import matrices, pairs_of


def singular_values(tensors: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return the singular values of every layer's product BA, the largest first, a row per layer and a column per rank.

    Args:
        tensors: the tensors of a global model by name.

    Raises:
        ConfigurationError: there are no factors.
    """
    pairs = pairs_of(tensors)
    if not pairs:
        raise ConfigurationError("Expected low-rank factors (hetfl.lora.LoRA) among the tensors but got none")
    rows = {}
    for layer, names in pairs.items():
        a_RI, b_OR = matrices(*(tensors[name].detach().double() for name in names))
        upper_RR, lower_RR = (torch.linalg.qr(each, mode="r").R for each in (b_OR, a_RI.T))
        rows[layer] = torch.linalg.svdvals(upper_RR @ lower_RR.T).tolist()
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename(columns=lambda rank: rank + 1).rename_axis("layer").rename_axis("rank", axis=1)


def spectra(snapshots: RunSnapshots) -> pd.DataFrame:
    """Return the root mean square over layers of each singular value, a row per snapshot and a column per rank."""
    rows = {each.round: singular_values(each.weights).pow(2).mean().pow(0.5) for each in snapshots}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("round")


def plot_spectra(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the singular values of several runs over rounds, a line per rank.

    Args:
        tables: by name of a run, the result of :func:`spectra`.
    """
    figure, axes = new_figure(
        "Singular values of the products",
        "Look for lines that fall away from the others: these ranks collapse, because few clients hold them.",
        width=2.2 + 2.4 * len(tables),
        height=2.8,
        columns=len(tables),
    )
    lowest = min(float(table[table > 0].min().min()) for table in tables.values())
    highest = max(float(table.max().max()) for table in tables.values())
    for number, (ax, (name, table)) in enumerate(zip(axes[0], tables.items(), strict=True)):
        for rank, style in level_styles([str(rank) for rank in table.columns]).items():
            values = table[int(rank)].clip(lower=lowest)
            ax.plot(table.index + 1, values, **style.line(len(table)), label=rank)
        ax.set_yscale("log")
        ax.set_ylim(0.7 * lowest, 1.5 * highest)
        log_ticks(ax.yaxis, 0.7 * lowest, 1.5 * highest)
        rounds_axis(ax, ticks=5)
        ax.set_title(name, fontsize=FONT_POINTS, parse_math=False)
        ax.set_ylabel("" if number else log_name("Singular value, mean of layers"), fontsize=FONT_POINTS)
        plain(ax)
        if number == len(tables) - 1:
            ax.legend(title="rank", frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
