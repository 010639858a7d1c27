"""Fleets from a table with one row per client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetfl.errors import ConfigurationError
from hetfl.fleet.base import DAY, Fleet
from hetfl.fleet.devices import Devices, check_stay
from hetfl.fleet.numbers import FOREVER, FloatArray, IntArray, check_column
from hetfl.reading import LARGEST_TABLE, check_size

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("client", "throughput", "downlink", "uplink")
OPTIONAL = {"availability": 1.0, "failure_rate": 0.0, "first_round": 0.0, "last_round": float(FOREVER)}
"""Optional columns, which may be missing or have empty cells, and their default values."""
KIND = "kind"


class CsvFleet(Fleet):
    """Devices from a CSV file with one row per client.

    Required columns are ``client`` (0 to N − 1, in any order), ``throughput`` (FLOP/s), ``downlink`` and ``uplink``
    (bytes/s). Optional columns are ``availability`` (share of the time; default 1), ``failure_rate`` (default 0),
    ``first_round`` (default 0), ``last_round`` (the last round in which the client takes part; default: no end) and
    ``kind`` (a name, for tables). An empty cell of an optional column means the default.

    Args:
        path: the file, with a header line.
        period: P; see :class:`Fleet`.
        variation: σ; see :class:`Fleet`.
        link_variation: σ'; see :class:`Fleet`.
    """

    def __init__(self, path: str, period: float = DAY, variation: float = 0.0, link_variation: float = 0.0) -> None:
        super().__init__(period, variation, link_variation)
        self.path = path

    def draw(self, num_clients: int, seed: int) -> Devices:
        """Return the clients' devices, read from the file.

        Raises:
            ConfigurationError: the file is missing, lacks a column or has an unknown one; a cell is invalid; or a
                client is missing or repeated. Names file, column and line.
        """
        table = self._read()
        order = self._order(table, num_clients)
        numbers = {name: self._numbers(table, name)[order] for name in (*NEEDED[1:], *OPTIONAL)}
        first, last = numbers.pop("first_round"), numbers.pop("last_round")
        check_stay(first, last, lambda client: self._place(table, order[client]))
        kinds, kind = np.unique(table.get(KIND, table["client"].map(lambda _: "device")), return_inverse=True)
        return Devices(
            kinds=tuple(kinds.tolist()),
            kind=kind[order],
            **numbers,
            first_round=first.astype(np.int64),
            last_round=last.astype(np.int64),
        )

    def _read(self) -> pd.DataFrame:
        """Return the cells as text, without empty lines; a row's index is its line number minus two."""
        # Not at the top of the file: importing pandas takes a tenth of a second, and other fleets do not need it.
        import pandas as pd

        check_size(Path(self.path), LARGEST_TABLE)
        try:
            table = pd.read_csv(
                self.path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"Expected a CSV file in {self.path} but got: {str(error).strip()}") from error
        if not isinstance(table.index, pd.RangeIndex):  # pandas uses surplus cells at a line's start as row names
            raise ConfigurationError(
                f"Expected at most {len(table.columns)} cells in a line, as the header of {self.path} has, but got "
                f"{len(table.columns) + table.index.nlevels}"
            )
        missing = [name for name in NEEDED if name not in table.columns]
        if missing:
            raise ConfigurationError(f"Expected columns {missing} in {self.path} but it has {list(table.columns)}")
        known = (*NEEDED, *OPTIONAL, KIND)
        for name in table.columns:
            if name not in known:
                raise ConfigurationError(f"Expected columns among {list(known)} in {self.path} but got {name!r}")
        table = table.fillna("")  # missing cells of a short line
        return table[(table != "").any(axis=1)]

    def _place(self, table: pd.DataFrame, row: int) -> str:
        return f"in line {table.index[row] + 2} of {self.path}"

    def _numbers(self, table: pd.DataFrame, name: str) -> FloatArray:
        """Return a column's numbers, in the order of the file."""
        if name not in table:
            return np.full(len(table), OPTIONAL[name])
        values = self._parsed(table, name)
        check_column(name, values, lambda row: self._place(table, row))
        return values

    def _parsed(self, table: pd.DataFrame, name: str) -> FloatArray:
        import pandas as pd

        cells = table[name].str.strip()
        values: FloatArray = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64).copy()
        if name in OPTIONAL:
            values[(cells == "").to_numpy()] = OPTIONAL[name]
        wrong = np.flatnonzero(np.isnan(values))
        if len(wrong):
            raise ConfigurationError(
                f"Expected a number in column {name} {self._place(table, wrong[0])} but got {cells.iloc[wrong[0]]!r}"
            )
        return values

    def _order(self, table: pd.DataFrame, num_clients: int) -> IntArray:
        """Return each client's row, shape (N,)."""
        ids = self._parsed(table, "client")
        wanted = f"Expected each client from 0 to {num_clients - 1} once in column client"
        wrong = np.flatnonzero((ids < 0) | (ids >= num_clients) | (ids != np.floor(ids)))
        if len(wrong):
            raise ConfigurationError(f"{wanted} but got {ids[wrong[0]]:g} {self._place(table, wrong[0])}")
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order][1:] == ids[order][:-1]]
        if len(again):
            row = int(again.min())
            raise ConfigurationError(f"{wanted} but got {ids[row]:g} again {self._place(table, row)}")
        absent = np.setdiff1d(np.arange(num_clients), ids)
        if len(absent):
            raise ConfigurationError(f"{wanted} but {absent[0]} has no line in {self.path}")
        return order
