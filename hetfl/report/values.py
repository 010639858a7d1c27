"""What clients are worth in a report, for runs with measures of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hetfl.analysis.pictures import had_values
from hetfl.analysis.values import late_values, load_client_data, load_values, rank_correlation, rounds_left_out
from hetfl.analysis.values_plots import AGAINST, measures_of, plot_values
from hetfl.report.document import Cell, Table
from hetfl.report.groups import Group
from hetfl.report.panels import Drawing

PICTURE = "values"
"""Name of the figure: of the first run with values."""
FEWEST = 3
"""How many clients with the lowest values a table names."""


@dataclass(frozen=True)
class ValuedRun:
    """A run with measures of values.

    Attributes:
        group: name of its group.
        table: its ``values.csv``.
        clients: its ``client_data.csv``.
    """

    group: str
    table: pd.DataFrame
    clients: pd.DataFrame

    @property
    def left_out(self) -> dict[int, list[int]]:
        """By client the rounds in which it was left out of the mean for a low value."""
        return rounds_left_out(self.table)


def valued(groups: Sequence[Group]) -> list[ValuedRun]:
    """Return the first run of each group that has values.

    Raises:
        ConfigurationError: a table of a run is not as expected.
    """
    firsts = [(group.name, next((run for run in group.runs if had_values(run.folder)), None)) for group in groups]
    return [
        ValuedRun(name, load_values(run.folder), load_client_data(run.folder))
        for name, run in firsts
        if run is not None
    ]


def left_out_table(runs: Sequence[ValuedRun]) -> Table | None:
    """Return a table with a row per client that was left out of means, and its rounds; None if none was."""
    rows: list[list[str | Cell]] = [
        [each.group, str(client), str(len(rounds)), spans(rounds)]
        for each in runs
        for client, rounds in each.left_out.items()
    ]
    caption = "Clients whose updates were left out of means for a low value, and the rounds, from 0, of the first run."
    return Table(caption, ["group", "client", "times", "rounds"], rows) if rows else None


def spans(numbers: Sequence[int]) -> str:
    """Return rising whole numbers as text, neighbours as spans.

    >>> spans([1, 4, 5, 6, 9, 10])
    '1, 4-6, 9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def value_table(runs: Sequence[ValuedRun]) -> Table:
    """Return a table with a row per run and measure: rank correlations of late values, and the lowest clients."""
    rows: list[list[str | Cell]] = []
    for each in runs:
        for measure in measures_of(each.table):
            late = late_values(each.table, measure)
            rhos = [rank_correlation(late, each.clients[column]) for column in AGAINST]
            lowest = late.sort_values(kind="stable").index[:FEWEST]
            shown = ["–" if np.isnan(rho) else f"{rho:.2f}" for rho in rhos]
            rows.append([each.group, measure, str(len(late)), *shown, ", ".join(str(client) for client in lowest)])
    return Table(
        "Values in the last third of the rounds, first run of each group: Spearman's rank correlation with what is "
        "known of the clients' data, and the clients with the lowest values.",
        ["group", "measure", "clients", "with samples", "with noise", "with divergence", "lowest"],
        rows,
    )


def value_figure(groups: Sequence[Group]) -> Drawing | None:
    """Return the figure of the first run with values; None if no run has any."""
    runs = valued(groups)
    if not runs:
        return None
    first = runs[0]
    cells = [[first.group, *map(str, row)] for row in first.table.itertuples(index=False)]
    return Drawing(plot_values(first.table, first.clients), [["group", *first.table.columns], *cells])
