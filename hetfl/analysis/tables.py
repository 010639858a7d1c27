"""What the readers of tables in a run folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, check_size


def read_own_table(
    path: Path, columns: Sequence[str], fits: Callable[[pd.DataFrame], bool], whose: str, content: str, **options: Any
) -> pd.DataFrame:
    """Return a table that a run wrote, after a check.

    Args:
        path: the file.
        columns: names of the columns, in their order.
        fits: returns whether the cells are as expected; a KeyError or ValueError says that they are not.
        whose: which runs have such a file, for messages.
        content: what cells are expected, for messages.
        options: of ``pandas.read_csv``.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run {whose}, but got no such file")
    check_size(path, LARGEST_TABLE)
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
        whole = list(table.columns) == list(columns) and isinstance(table.index, pd.RangeIndex) and fits(table)
    except (KeyError, ValueError):  # not a table, or text among numbers
        whole = False
    if not whole:
        raise ConfigurationError(f"Expected columns {', '.join(columns)}, with {content}, of {path} but got others")
    return table
