"""Tables in CSV files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData, client_codes
from hetfl.data.csv_table import Columns, Missing, cells, read_table, usable_rows
from hetfl.data.csv_values import CategoryForm, Features, class_targets, features_of, number_targets
from hetfl.data.module import FederatedDataModule
from hetfl.data.split import hold_out
from hetfl.errors import ConfigurationError
from hetfl.objectives import MultiLabel, Regression
from hetfl.seeding import generator

if TYPE_CHECKING:
    import pandas as pd


class CSVData(FederatedDataModule):
    """One sample per row: features, a target, and optionally a client id.

    Classes may be numbers or any texts, also "NA" and "None"; in sorted order they become 0 to K-1. Features are not
    scaled: scale them beforehand, or in ``transform``. A row is unusable if a feature is infinite or too large for the
    default type, or if the target or the client id is empty. Unusable rows are an error, or left out with
    ``drop_unusable``. ``missing`` decides on empty features.

    Args:
        path: the CSV file with a header line.
        target: the column with the class; or a list of columns with 0 and 1, or with numbers.
        features: the feature columns; null: all columns but the targets and the client id.
        client: the column with the client id; null: the partitioner decides.
        test_path: a second file with the test rows; null: a fraction of the rows of ``path``.
        test_fraction: fraction of the rows that is the test set without ``test_path``; ``seed`` does not change it.
        separator: the character between cells, such as ";" or a tab.
        encoding: encoding of the text, such as "latin-1".
        decimal: the decimal point of numbers.
        target_kind: ``class``, or ``number`` for floats; null: numbers if the objective has no labels.
        categorical: the feature columns whose cells are categories, read as text. The known categories are those in
            ``path``; another category in ``test_path`` is treated as empty.
        categories: ``one_hot``: each category is a column of 0 and 1; ``codes``: a net gets
            ``{"numbers": floats (N, F), "categories": int64 (N, C)}`` with codes from 1; 0 is an empty cell.
        missing: treatment of an empty feature. ``refuse``: the row is unusable; ``drop``: the row is left out;
            ``mean``: the mean of the training rows is filled in; a number: this number is filled in. With ``mean`` or
            a number, an empty category gives zeros.
        num_clients: number of clients N; null: the number of client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.

    Attributes:
        features: the conversion of rows to inputs, with the categories of each column; None before :meth:`load`.
    """

    def __init__(
        self,
        *,
        path: str,
        target: str | list[str],
        features: list[str] | None = None,
        client: str | None = None,
        test_path: str | None = None,
        test_fraction: float = 0.2,
        separator: str = ",",
        encoding: str = "utf-8",
        decimal: str = ".",
        target_kind: Literal["class", "number"] | None = None,
        categorical: list[str] | None = None,
        categories: CategoryForm = "one_hot",
        missing: Missing = "refuse",
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        if test_path is None and not 0 < test_fraction < 1:
            raise ConfigurationError(f"Expected test_fraction in (0, 1), or test_path, but got {test_fraction}")
        if len(separator) != 1 or len(decimal) != 1 or separator == decimal:
            raise ConfigurationError(
                f"Expected two different characters as separator and decimal but got {separator!r} and {decimal!r}"
            )
        self.columns = Columns(target, client, features, categorical or (), self._numbers(target_kind), missing)
        self.columns.check()
        if categories not in ("one_hot", "codes"):
            raise ConfigurationError(f"Expected categories one_hot or codes but got {categories!r}")
        self.path, self.test_path, self.test_fraction, self.categories = path, test_path, test_fraction, categories
        self.separator, self.encoding, self.decimal = separator, encoding, decimal
        self.features: Features | None = None

    def _numbers(self, kind: str | None) -> bool:
        """Return whether targets are numbers rather than classes."""
        if kind not in (None, "class", "number"):
            raise ConfigurationError(f"Expected target_kind class or number or null but got {kind!r}")
        return kind == "number" if kind else self._objective is not None and not self._objective.owns_labels

    def load(self) -> Arrays:  # noqa: D102
        table = self._read(self.path)
        columns = replace(self.columns, features=self.columns.features_of(table, self.path))
        table = usable_rows(table, columns, self.path, self.drop_unusable)
        if self.test_path is None:
            kept, held_out = hold_out(len(table), self.test_fraction, generator(0, "test"), "test_fraction")
            train, test = table.iloc[kept.numpy()], table.iloc[held_out.numpy()]
        else:
            train = table
            test = usable_rows(self._read(self.test_path), columns, self.test_path, self.drop_unusable)
        self.features = features_of(table, train, columns, self.categories)
        targets, num_classes = self._targets(train, test, columns)
        ids = [None, None] if columns.client is None else cells(train[columns.client], test[columns.client])
        train_codes, test_codes, names = client_codes(*ids)
        return Arrays(
            ClientData(self.features.inputs(train), targets[0]),
            ClientData(self.features.inputs(test), targets[1]),
            num_classes=num_classes,
            train_clients=train_codes,
            test_clients=test_codes,
            client_names=names,
            objective=Regression() if columns.numbers else MultiLabel() if columns.numeric_targets else None,
        )

    def _read(self, path: str) -> pd.DataFrame:
        return read_table(path, self.columns, self.separator, self.encoding, self.decimal)

    def _targets(self, train: pd.DataFrame, test: pd.DataFrame, columns: Columns) -> tuple[list[Tensor], int]:
        """Return the targets of training and test rows, and the number of classes or outputs."""
        if not columns.numeric_targets:
            return class_targets(*(part[columns.targets[0]] for part in (train, test)))
        parts = ((train, self.path), (test, self.test_path or self.path))
        return [number_targets(part, columns, path) for part, path in parts], len(columns.targets)
