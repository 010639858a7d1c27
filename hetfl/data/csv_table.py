"""CSV files as tables: reading, checks, and the selection of usable rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from hetfl.data.usable import DROP, default_type, of_clients, some, usable
from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_DATA, check_size

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]

EMPTY = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "null", "NULL", "None"]
"""Texts that mean an empty cell in a feature column; in a class or id column only the first means an empty cell."""


Missing = float | Literal["refuse", "drop", "mean"]
"""Treatment of an empty feature cell: an error, the row is left out, the cell gets the mean, or it gets a number."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    Attributes:
        target: the column with the class, or several columns with 0 or 1, or with numbers.
        client: the column with the client id; None: no such column.
        features: the feature columns; None: all columns but the target and the client.
        categorical: the feature columns whose cells are categories.
        numbers: whether targets are numbers rather than classes.
        missing: treatment of empty cells in features.
    """

    target: str | Sequence[str]
    client: str | None
    features: Sequence[str] | None
    categorical: Sequence[str] = ()
    numbers: bool = False
    missing: Missing = "refuse"

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigurationError: a column has two roles, a list is empty, or ``missing`` is unknown.
        """
        if not self.targets:
            raise ConfigurationError("Expected at least one column in target but got []")
        if self.features is not None and not self.features:
            raise ConfigurationError(
                "Expected at least one column in features, or null for all but the target and the client, but got []"
            )
        for name in (*self.targets, self.client):
            if name is not None and name in (*(self.features or ()), *self.categorical):
                what = "target" if name in self.targets else "client"
                raise ConfigurationError(f"Expected features without the {what} but got {name!r} in features")
        if self.features is not None and (others := set(self.categorical) - set(self.features)):
            raise ConfigurationError(f"Expected categorical columns among the features but got {sorted(others)}")
        if self.missing not in ("refuse", "drop", "mean") and not _is_finite(self.missing):
            raise ConfigurationError(f"Expected missing refuse, drop, mean or a finite number but got {self.missing!r}")

    @property
    def several(self) -> bool:
        """Whether the target is a list of columns, and so a matrix."""
        return not isinstance(self.target, str)

    @property
    def targets(self) -> list[str]:
        """The target columns."""
        return [self.target] if isinstance(self.target, str) else list(self.target)

    @property
    def numeric_targets(self) -> list[str]:
        """The target columns whose cells are numbers: all target columns but a single class column."""
        return self.targets if self.numbers or self.several else []

    @property
    def names(self) -> list[str]:
        """The columns whose cells are names: the class and the client id."""
        return [name for name in (*self.targets, self.client) if name is not None and name not in self.numeric_targets]

    @property
    def texts(self) -> list[str]:
        """The columns whose cells are read as text."""
        return [*self.names, *self.categorical]

    def features_of(self, table: pd.DataFrame, path: str) -> list[str]:
        """Return the feature columns of a table.

        Raises:
            ConfigurationError: a column is missing, or a numeric column has other values.
        """
        listed, others = list(table.columns), [*self.targets, *([] if self.client is None else [self.client])]
        features = [name for name in listed if name not in others] if self.features is None else list(self.features)
        missing = [name for name in dict.fromkeys([*features, *others, *self.categorical]) if name not in listed]
        if missing:
            hint = " (set separator if the file is not separated by commas)" if len(listed) == 1 else ""
            raise ConfigurationError(f"Expected columns {missing} in {path} but it has {listed}{hint}")
        if not features:
            raise ConfigurationError(f"Expected a feature column in {path} but it has {listed}")
        numbers = [name for name in features if name not in self.categorical]
        for what, names, advice in (("feature", numbers, "categorical"), ("target", self.numeric_targets, "")):
            if wrong := [name for name in names if table[name].dtype.kind not in "biuf"]:
                hint = f": name them in {advice} if they are categories" if advice else ""
                raise ConfigurationError(
                    f"Expected numbers in the {what} columns of {path} but {wrong} have other values{hint}"
                )
        return features


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_table(path: str, columns: Columns, separator: str, encoding: str, decimal: str) -> pd.DataFrame:
    """Return a CSV file as a table.

    Raises:
        ConfigurationError: the file is missing, too large, or cannot be read with these settings.
    """
    # Imported here because importing pandas takes 0.1 s, and other data sets do not need it.
    import pandas as pd

    check_size(Path(path), LARGEST_DATA)
    dialect: dict[str, Any] = {"sep": separator, "encoding": encoding, "decimal": decimal, "engine": "c"}
    try:
        listed = list(pd.read_csv(path, nrows=0, **dialect).columns)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # raised for rows with more cells than the header
            table: pd.DataFrame = pd.read_csv(
                path,
                dtype={name: str for name in columns.texts if name in listed},
                keep_default_na=False,
                na_values={name: EMPTY for name in listed if name not in columns.texts},
                index_col=False if len(listed) > 1 else None,  # a single column means a wrong separator
                **dialect,
            )
        return table
    except pd.errors.ParserWarning:
        raise ConfigurationError(
            f"Expected rows of {len(listed)} cells, as the header has, in {path} but got longer ones"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"Expected text in {encoding} in {path} but got other bytes: set encoding") from error
    except (OSError, ValueError, LookupError) as error:
        raise ConfigurationError(f"Expected a CSV file in {path} but got: {str(error).splitlines()[0]}") from error


def usable_rows(table: pd.DataFrame, columns: Columns, path: str, drop: bool) -> pd.DataFrame:
    """Return the rows that have a target, a client id (if there is such a column), and finite numbers in all features.

    ``columns.missing`` decides on empty feature cells: ``refuse`` counts them as unusable, ``drop`` leaves their rows
    out, and otherwise they are filled later.

    Args:
        table: the table.
        columns: what its columns mean.
        path: its file, for messages.
        drop: leave unusable rows out; otherwise they are an error.

    Raises:
        ConfigurationError: a row is unusable and ``drop`` is false, or no row is left. The message has the columns, the
            rows (counted from 1 without the header) and the clients.
    """
    empty, bad = _empty_cells(table, columns, path), _bad_cells(table, columns, path)
    left_out = np.zeros(len(table), dtype=bool)
    if columns.missing != "refuse":
        bad = {name: rows & ~empty[name] if name in empty else rows for name, rows in bad.items()}
        if columns.missing == "drop":
            left_out = np.logical_or.reduce(list(empty.values()))
    bad = {name: rows & ~left_out for name, rows in bad.items()}
    bad_rows = np.logical_or.reduce(list(bad.values()))
    kept: pd.DataFrame = table[~(bad_rows | left_out)]
    for rows, what in ((left_out, "empty cells"), (bad_rows, "unusable values")):
        if rows.any() and len(kept) and (drop or rows is left_out):
            rank_zero_warn(f"{int(rows.sum())} of {len(table)} rows of {path} have {what} and are left out")
    if not bad_rows.any() and len(kept):
        return kept if left_out.any() else table
    if not bad_rows.any():
        raise ConfigurationError(f"Expected a row without empty cells in {path} for missing: drop but got none")
    if drop and len(kept):
        return kept
    where = some("column", [repr(name) for name, rows in bad.items() if rows.any()])
    which = "all rows" if bad_rows.all() else some("row", (np.flatnonzero(bad_rows) + 1).tolist())
    clients = "" if columns.client is None else f" of {of_clients(table[columns.client][bad_rows].tolist())}"
    advice = "" if not len(kept) else f": {DROP}"
    raise ConfigurationError(
        f"Expected a value in every row of {path}, in features a finite {default_type()}, but got "
        f"empty, infinite or too large ones in {where}, {which}{clients}{advice}"
    )


def _empty_cells(table: pd.DataFrame, columns: Columns, path: str) -> dict[str, BoolArray]:
    """Return for each feature column which rows are empty in it."""
    return {
        name: (table[name] == "").to_numpy() if name in columns.categorical else table[name].isna().to_numpy()
        for name in columns.features_of(table, path)
    }


def _bad_cells(table: pd.DataFrame, columns: Columns, path: str) -> dict[str, BoolArray]:
    """Return for each column which rows have an unusable cell in it."""
    features = [name for name in columns.features_of(table, path) if name not in columns.categorical]
    numbers = [*features, *columns.numeric_targets]
    bad = {name: ~usable(torch.tensor(table[name].to_numpy("float64"))).numpy() for name in numbers}
    return bad | {name: (table[name] == "").to_numpy() for name in columns.texts}


def cells(*parts: pd.Series[str]) -> list[list[Any]]:
    """Return the cells of columns as numbers if all of them are finite numbers, and otherwise as text."""
    import pandas as pd

    try:
        numbers = [pd.to_numeric(part) for part in parts]
    except (ValueError, TypeError):
        return [part.tolist() for part in parts]
    finite = all(np.isfinite(part.to_numpy("float64")).all() for part in numbers)
    return [part.tolist() for part in (numbers if finite else parts)]
