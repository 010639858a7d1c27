"""The partition of the data as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from hetfl.data import FederatedDataModule
from hetfl.data.mix import evenly_spaced
from hetfl.display.formats import cell, plain_table, print_table

MOST_ROWS = 50
"""Maximum number of rows; of more clients the table shows this number at even distances."""
COLUMNS = {
    "train_samples": "training\nsamples",
    "test_samples": "test\nsamples",
    "labels": "labels",
    "divergence": "divergence",
}
"""Columns of the table of clients, and their headings."""


def show_data(data: FederatedDataModule, clients: pd.DataFrame, console: Console | None = None) -> None:
    """Print the numbers of each client, their minima, medians and maxima, and the number of unassigned samples.

    Args:
        data: the data module, after setup.
        clients: the result of :func:`hetfl.data.client_table` for it.
        console: console to print to; None: standard output.
    """
    console = console or Console()
    print_table(data_table(clients), console)
    console.print(data.summary(), markup=False, soft_wrap=True)
    console.print(f"not assigned: {data.unassigned:,} of {sum(data.sizes) + data.unassigned:,} training samples")
    if "divergence" in clients.columns:
        console.print(
            "divergence: total variation distance of a client's class mix from that of all clients together",
            soft_wrap=True,
        )


def data_table(clients: pd.DataFrame) -> Table:
    """Return a table with a row per client, at most :data:`MOST_ROWS`, and rows for minima, medians and maxima.

    Args:
        clients: the result of :func:`hetfl.data.client_table`.
    """
    shown = evenly_spaced(len(clients), MOST_ROWS)
    some = "" if len(shown) == len(clients) else f" ({len(shown)} of {len(clients):,}, evenly spaced)"
    table = plain_table(f"Clients{some}")
    table.add_column("client", justify="right", no_wrap=True)
    shown_columns = [name for name in COLUMNS if name in clients.columns]
    for heading in (COLUMNS[name] for name in shown_columns):
        table.add_column(heading, justify="right", no_wrap=True)
    texts = [name for name in ("id", "change") if name in clients.columns]
    for name in texts:
        table.add_column(name, no_wrap=True)
    for row in clients.iloc[shown].to_dict("records"):
        table.add_row(str(row["client"]), *_cells(row), *(cell(row[name]) for name in texts))
    table.add_section()
    numbers = clients[shown_columns]
    for name, values in (("smallest", numbers.min()), ("median", numbers.median()), ("largest", numbers.max())):
        table.add_row(name, *_cells(values))
    return table


def _cells(row: Mapping[Any, Any] | pd.Series[Any]) -> list[str]:
    """Return the numbers of a row as text: counts (a median may end in .5), and the divergence."""
    counts = [f"{row[name]:,.1f}".removesuffix(".0") for name in COLUMNS if name != "divergence" and name in row]
    return [*counts, *([f"{row['divergence']:.3f}"] if "divergence" in row else [])]
