"""Conversion of table cells to tensors: features with categories and empty cells, and targets of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from hetfl.data.csv_table import Columns, cells
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree

if TYPE_CHECKING:
    import pandas as pd

CategoryForm = Literal["one_hot", "codes"]


@dataclass(frozen=True)
class Features:
    """The conversion of rows to inputs; categories and means come from the training file.

    Attributes:
        names: the feature columns.
        categories: for each categorical column its sorted categories, as text.
        form: ``one_hot``: each category is a column of 0 and 1; ``codes``: categories are integers in a second input.
        filled: for numeric columns, the number that replaces an empty cell.
    """

    names: Sequence[str]
    categories: Mapping[str, tuple[str, ...]]
    form: CategoryForm
    filled: Mapping[str, float]

    def inputs(self, table: pd.DataFrame) -> Tree:
        """Return floats (n, F); with ``codes`` a dict of ``numbers``, floats (n, F), and ``categories``, int64 (n, C).

        Codes begin at 1. An empty cell, or a category that the training file does not have, gives zeros.
        """
        numbers = [self._numbers(table, name) for name in self.names if name not in self.categories]
        if not self.categories:
            return _floats(numbers, len(table))
        codes = {name: self._codes(table, name) for name in self.names if name in self.categories}
        if self.form == "codes":
            return {
                "numbers": _floats(numbers, len(table)),
                "categories": torch.from_numpy(np.stack(list(codes.values()), axis=1)),
            }
        parts: list[Any] = []
        for name in self.names:
            known = range(1, len(self.categories.get(name, ())) + 1)
            parts += [codes[name] == number for number in known] if name in codes else [self._numbers(table, name)]
        return _floats(parts, len(table))

    def _numbers(self, table: pd.DataFrame, name: str) -> Any:
        column = table[name].to_numpy("float64")
        return np.where(np.isnan(column), self.filled[name], column) if name in self.filled else column

    def _codes(self, table: pd.DataFrame, name: str) -> Any:
        known = {category: number for number, category in enumerate(self.categories[name], start=1)}
        return np.array([known.get(cell, 0) for cell in table[name].tolist()], dtype=np.int64)


def _floats(columns: Sequence[Any], rows: int) -> Tensor:
    values = np.stack(columns, axis=1) if columns else np.zeros((rows, 0))
    return torch.tensor(values.astype("float64"), dtype=torch.get_default_dtype())


def features_of(file: pd.DataFrame, train: pd.DataFrame, columns: Columns, form: CategoryForm) -> Features:
    """Return the conversion of rows to inputs.

    Args:
        file: all usable rows of the training file; they define the categories.
        train: the training rows among them; they define the means.
        columns: what the columns mean; ``columns.features`` is set.
        form: form of categories.

    Raises:
        ConfigurationError: a mean is needed of a column without a value in any training row.
    """
    names = list(columns.features or ())
    numbers = [name for name in names if name not in columns.categorical]
    filled: dict[str, float] = {}
    if columns.missing == "mean":
        filled = {name: float(train[name].mean()) for name in numbers}
        if none := [name for name, mean in filled.items() if np.isnan(mean)]:
            raise ConfigurationError(f"Expected a value in a training row of columns {none} for missing: mean")
    elif isinstance(columns.missing, int | float):
        filled = dict.fromkeys(numbers, float(columns.missing))
    categories = {name: tuple(sorted(set(file[name].tolist()) - {""})) for name in names if name in columns.categorical}
    return Features(names, categories, form, filled)


def class_targets(*parts: pd.Series[str]) -> tuple[list[Tensor], int]:
    """Return the class number of each row, int64 (n,), for the classes in sorted order, and the number of classes."""
    labels = cells(*parts)
    classes = sorted({label for part in labels for label in part})
    numbers = {name: number for number, name in enumerate(classes)}
    return [torch.tensor([numbers[label] for label in part], dtype=torch.int64) for part in labels], len(classes)


def number_targets(table: pd.DataFrame, columns: Columns, path: str) -> Tensor:
    """Return numeric targets as floats (n,), or (n, M) for M columns; columns of 0 and 1 give int64 (n, L).

    Raises:
        ConfigurationError: a column of classes has another value than 0 and 1.
    """
    values = table[list(columns.targets)].to_numpy("float64")
    if columns.numbers:
        targets = torch.tensor(values, dtype=torch.get_default_dtype())
        return targets if columns.several else targets[:, 0]
    if others := [name for name, column in zip(columns.targets, values.T, strict=True) if set(column) - {0.0, 1.0}]:
        raise ConfigurationError(
            f"Expected 0 or 1 in target columns {others} of {path} but got other values: set target_kind: number"
        )
    return torch.tensor(values, dtype=torch.int64)
