"""A reader for the values of clients in a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, check_size
from hetfl.trainer.writing import DATA_COLUMNS, VALUE_COLUMNS

VALUES_FILE, DATA_FILE = "values.csv", "client_data.csv"
"""Names of the tables in a run folder."""


def load_values(folder: str | Path) -> pd.DataFrame:
    """Return ``values.csv`` of a run: a row per round, client and measure, with the columns of the file.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """
    path = Path(folder) / VALUES_FILE
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run with measures of values, but got no such file")
    check_size(path, LARGEST_TABLE)
    try:
        table = pd.read_csv(path, dtype={"measure": str}, keep_default_na=False)
        numbers = table[["round", "client", "value"]].to_numpy(np.float64)
        whole = list(table.columns) == list(VALUE_COLUMNS) and bool(np.isfinite(numbers).all())
        whole = whole and bool(((numbers[:, :2] >= 0) & (numbers[:, :2] % 1 == 0)).all())
        whole = whole and not table.duplicated(["round", "client", "measure"]).any()
    except (ValueError, KeyError):  # not a table, or text among numbers
        whole = False
    if not whole:
        raise ConfigurationError(
            f"Expected columns {', '.join(VALUE_COLUMNS)}, with finite values and each client once per round and "
            f"measure, of {path} but got others"
        )
    return table


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


def load_client_data(folder: str | Path) -> pd.DataFrame:
    """Return ``client_data.csv`` of a run: per client its samples, the divergence of its labels, and its noise.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """
    path = Path(folder) / DATA_FILE
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run with measures of values, but got no such file")
    check_size(path, LARGEST_TABLE)
    try:
        table = pd.read_csv(path)
        numbers = table[["client", "samples", "noise"]].to_numpy(np.float64)
        apart = table["divergence"].to_numpy(np.float64)
        whole = list(table.columns) == list(DATA_COLUMNS) and bool(np.isfinite(numbers).all() and (numbers >= 0).all())
        whole = whole and bool((np.isnan(apart) | ((apart >= 0) & (apart <= 1))).all())
        whole = whole and table["client"].is_unique
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise ConfigurationError(
            f"Expected columns {', '.join(DATA_COLUMNS)}, with numbers from 0 and each client once, of {path} but got "
            "others"
        )
    return table.set_index("client")


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
