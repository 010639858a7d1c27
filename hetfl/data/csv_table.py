"""CSV files as tables: read, checked, and with rows left out that nothing can be learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.data.usable import DROP, default_type, of_clients, some, usable
from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_DATA, check_size

if TYPE_CHECKING:
    import pandas as pd

EMPTY = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "null", "NULL", "None"]
"""What stands in a cell of a feature without a value; as a class or a client id all but the first are names."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    Attributes:
        target: the column with the class.
        client: the column with the client id; None: there is none.
        features: the feature columns; None: all others.
    """

    target: str
    client: str | None
    features: Sequence[str] | None

    @property
    def texts(self) -> list[str]:
        """The columns whose cells are kept as they are written."""
        return [self.target, *([] if self.client is None else [self.client])]

    def features_of(self, table: pd.DataFrame, path: str) -> list[str]:
        """Return the feature columns of a table.

        Raises:
            ConfigurationError: a column is missing, or a feature column holds something else than numbers.
        """
        listed = list(table.columns)
        features = [name for name in listed if name not in self.texts] if self.features is None else list(self.features)
        missing = [name for name in [*features, *self.texts] if name not in listed]
        if missing:
            hint = " (set separator if it is another than a comma)" if len(listed) == 1 else ""
            raise ConfigurationError(f"Expected columns {missing} in {path} but it has {listed}{hint}")
        if not features:
            raise ConfigurationError(f"Expected a feature column in {path} but it has {listed}")
        others = [name for name in features if table[name].dtype.kind not in "biuf"]
        if others:
            raise ConfigurationError(
                f"Expected numbers in the feature columns of {path} but {others} have other values"
            )
        return features


def read_table(path: str, columns: Columns, separator: str, encoding: str, decimal: str) -> pd.DataFrame:
    """Return a CSV file as a table.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read in this way.
    """
    # Not at the top: pandas takes a tenth of a second, which other data sets need not pay.
    import pandas as pd

    check_size(Path(path), LARGEST_DATA)
    dialect: dict[str, Any] = {"sep": separator, "encoding": encoding, "decimal": decimal, "engine": "c"}
    try:
        listed = list(pd.read_csv(path, nrows=0, **dialect).columns)
        table: pd.DataFrame = pd.read_csv(
            path,
            dtype={name: str for name in columns.texts if name in listed},
            keep_default_na=False,
            na_values={name: EMPTY for name in listed if name not in columns.texts},
            **dialect,
        )
        return table
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"Expected text in {encoding} in {path} but got other bytes: set encoding") from error
    except (OSError, ValueError, LookupError) as error:
        raise ConfigurationError(f"Expected a CSV file in {path} but got: {str(error).splitlines()[0]}") from error


def usable_rows(table: pd.DataFrame, columns: Columns, path: str, drop: bool) -> pd.DataFrame:
    """Return the rows that have a class, a client if there is such a column, and finite numbers in all features.

    Args:
        table: the table.
        columns: what its columns mean.
        path: its file, for messages.
        drop: leave the other rows out; otherwise they are refused.

    Raises:
        ConfigurationError: there are others and they are not to be left out, or nothing else is left; names columns,
            rows (from 1, the header not counted) and clients.
    """
    features = columns.features_of(table, path)
    bad = {name: ~usable(torch.tensor(table[name].to_numpy("float64"))).numpy() for name in features}
    bad |= {name: (table[name] == "").to_numpy() for name in columns.texts}
    bad_rows = np.logical_or.reduce(list(bad.values()))
    if not bad_rows.any():
        return table
    kept: pd.DataFrame = table[~bad_rows]
    if drop and len(kept):
        rank_zero_warn(f"{int(bad_rows.sum())} of {len(table)} rows of {path} have unusable values and are left out")
        return kept
    where = some("column", [repr(name) for name, rows in bad.items() if rows.any()])
    which = "all rows" if not len(kept) else some("row", (np.flatnonzero(bad_rows) + 1).tolist())
    clients = "" if columns.client is None else f" of {of_clients(table[columns.client][bad_rows].tolist())}"
    advice = "" if not len(kept) else f": {DROP}"
    raise ConfigurationError(
        f"Expected a value in every row of {path}, in features a finite {default_type()}, but got "
        f"empty, infinite or too large ones in {where}, {which}{clients}{advice}"
    )


def cells(*parts: pd.Series[str]) -> list[list[Any]]:
    """Return the cells of columns as they are written, or as numbers where all of them are finite numbers."""
    import pandas as pd

    try:
        numbers = [pd.to_numeric(part) for part in parts]
    except (ValueError, TypeError):
        return [part.tolist() for part in parts]
    finite = all(np.isfinite(part.to_numpy("float64")).all() for part in numbers)
    return [part.tolist() for part in (numbers if finite else parts)]
