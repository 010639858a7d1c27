"""A reader for the values of clients in a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hetfl.analysis.tables import read_own_table
from hetfl.errors import ConfigurationError
from hetfl.trainer.writing import DATA_COLUMNS, VALUE_COLUMNS

VALUES_FILE, DATA_FILE = "values.csv", "client_data.csv"
"""Names of the tables in a run folder."""
LEFT_OUT = "left_out"
"""The measure of ``values.csv`` that is 1 for clients that were left out of the round's mean."""
RUNS = "with measures of values"
"""Which runs have these tables."""


def load_values(folder: str | Path) -> pd.DataFrame:
    """Return ``values.csv`` of a run: a row per round, client and measure, with the columns of the file.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """

    def fits(table: pd.DataFrame) -> bool:
        numbers = table[["round", "client", "value"]].to_numpy(np.float64)
        whole = (numbers[:, :2] >= 0) & (numbers[:, :2] % 1 == 0)
        once = not table.duplicated(["round", "client", "measure"]).any()
        return bool(np.isfinite(numbers).all() and whole.all()) and once

    content = "finite values and each client once per round and measure"
    options = {"dtype": {"measure": str}, "keep_default_na": False}
    return read_own_table(Path(folder) / VALUES_FILE, VALUE_COLUMNS, fits, RUNS, content, **options)


def values_by_round(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the values of a measure: a row per round and a column per client, both ascending; NaN for no value.

    Args:
        table: the result of :func:`load_values`.
        measure: name of the measure.

    Raises:
        ConfigurationError: the table has no such measure.
    """
    rows = table[table["measure"] == measure]
    if rows.empty:
        known = ", ".join(sorted(set(table["measure"])))
        raise ConfigurationError(f"Expected one of the measures {known} but got {measure!r}")
    return rows.pivot(index="round", columns="client", values="value").sort_index().sort_index(axis=1)


def rounds_left_out(table: pd.DataFrame) -> dict[int, list[int]]:
    """Return by client the rounds in which it was left out of the mean for a low value; no other clients.

    Args:
        table: the result of :func:`load_values`.
    """
    rows = table[(table["measure"] == LEFT_OUT) & (table["value"] > 0)].sort_values(["client", "round"])
    rounds: dict[int, list[int]] = {}
    for client, round in zip(rows["client"], rows["round"], strict=True):
        rounds.setdefault(int(client), []).append(int(round))
    return rounds


def load_client_data(folder: str | Path) -> pd.DataFrame:
    """Return ``client_data.csv`` of a run: per client its samples, the divergence of its labels, and its noise.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """

    def fits(table: pd.DataFrame) -> bool:
        numbers = table[["client", "samples", "noise"]].to_numpy(np.float64)
        apart = table["divergence"].to_numpy(np.float64)
        shares = np.isnan(apart) | ((apart >= 0) & (apart <= 1))
        return bool(np.isfinite(numbers).all() and (numbers >= 0).all() and shares.all()) and table["client"].is_unique

    content = "numbers from 0 and each client once"
    return read_own_table(Path(folder) / DATA_FILE, DATA_COLUMNS, fits, RUNS, content).set_index("client")


def late_values(table: pd.DataFrame, measure: str) -> pd.Series[float]:
    """Return the mean of each client's values by a measure in the last third of the rounds that have values.

    Args:
        table: the result of :func:`load_values`.
        measure: name of the measure.
    """
    values = values_by_round(table, measure)
    return values.iloc[-max(1, -(-len(values) // 3)) :].mean().dropna()


def rank_correlation(one: pd.Series[float], other: pd.Series[float]) -> float:
    """Return Spearman's rank correlation over the clients that both series have; NaN if one of them is constant."""
    both = pd.concat([one, other], axis=1, join="inner").dropna()
    if len(both) < 2 or (both.nunique() < 2).any():
        return float("nan")
    return float(both.rank().corr().to_numpy(np.float64)[0, 1])
