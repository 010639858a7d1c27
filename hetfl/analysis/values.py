"""A reader for the values of clients in a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, check_size
from hetfl.trainer.writing import VALUE_COLUMNS

VALUES_FILE = "values.csv"
"""Name of the table in a run folder."""


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
