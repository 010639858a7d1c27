"""A run from the clients' side: how well each is served, against its data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hetfl.analysis.figures import level_legend, new_figure
from hetfl.analysis.runs import load_run
from hetfl.analysis.theme import level_colours, level_styles, plain
from hetfl.data import FederatedDataModule
from hetfl.data.mix import client_table
from hetfl.errors import ConfigurationError
from hetfl.runs.headline import ACCURACY, Headline


def client_view(folder: str | Path, data: FederatedDataModule) -> pd.DataFrame:
    """Return ``clients.csv`` of a finished run with what is known of the clients' data.

    Args:
        folder: the run folder.
        data: the data of the run, set up.

    Returns:
        A row per client: the columns of the file, and ``labels`` and ``divergence``
        (:func:`hetfl.data.mix.divergence`) where targets have labels.

    Raises:
        ConfigurationError: the file is missing or invalid, or the data has other clients.
    """
    clients, of_data = load_run(folder).clients, client_table(data)
    if clients is None:
        raise ConfigurationError(f"Expected {folder}/clients.csv, of a run with a final test, but got no such file")
    if clients["train_samples"].tolist() != of_data["train_samples"].tolist():
        raise ConfigurationError(f"Expected the data of the run in {folder} but got clients of other sizes")
    known = [name for name in ("labels", "divergence") if name in of_data]
    return clients.join(of_data[known])


def plot_client_view(table: pd.DataFrame, score: str | None = None, headline: Headline = ACCURACY) -> Figure:
    """Draw the score of every client over its number of samples and over the divergence of its labels.

    Args:
        table: the result of :func:`client_view`.
        score: the column of the score; None: that of the sub-models, such as ``own_accuracy``.
        headline: the score by which models of the run are compared, with its unit; ``load_run(folder).headline``.

    Raises:
        ConfigurationError: the table has no such column.
    """
    score = score or headline.own
    if missing := {score, "divergence"} - set(table.columns):
        raise ConfigurationError(f"Expected the columns {score} and divergence but got no {', '.join(sorted(missing))}")
    figure, axes = new_figure(
        "How well each client is served",
        "A dot is a client with its own sub-model on its own test samples. Look for a slope: then clients with few "
        "samples, or with unusual labels, are served worse.",
        width=7.2,
        height=2.8,
        columns=2,
    )
    levels = sorted(table["level"].unique())
    styles = level_styles(levels)
    for ax, (column, label) in zip(
        axes[0], (("train_samples", "training samples"), ("divergence", "divergence of its labels")), strict=True
    ):
        for level, rows in table.groupby("level"):
            style = styles[str(level)]
            ax.scatter(rows[column], headline.scale * rows[score], color=style.colour, marker=style.marker, s=18)
        ax.set_xlabel(label)
        plain(ax)
    axes[0, 0].set_ylabel(headline.in_unit(f"{headline.words} on own test samples"))
    level_legend(axes[0, 1], level_colours(levels))
    return figure
