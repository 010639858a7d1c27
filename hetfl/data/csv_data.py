"""Tables of numbers in CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hetfl.data.arrays import Arrays, ClientData, client_codes
from hetfl.data.csv_table import Columns, cells, read_table, usable_rows
from hetfl.data.module import FederatedDataModule
from hetfl.data.split import hold_out
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator

if TYPE_CHECKING:
    import pandas as pd


class CSVData(FederatedDataModule):
    """One sample a row: numeric features, a class, and perhaps the client that it belongs to.

    Classes may be any texts, "NA" and "None" included, or numbers; sorted, they are 0 to K-1. Features are taken as
    they are: scale them beforehand, or in ``transform``. Rows with an empty cell, or a feature that is infinite or too
    large for the default type, are refused, or left out with ``drop_unusable``.

    Args:
        path: the CSV file with a header line.
        target: the column with the class.
        features: the feature columns; null: all columns but the target and the client id.
        client: the column with the client id; null: the partitioner decides.
        test_path: a second file with the test rows; null: some rows of the first.
        test_fraction: without ``test_path``, the part of the rows that is the test set, whatever the seed.
        separator: the character between cells, such as ";" or a tab.
        encoding: of the text, such as "latin-1".
        decimal: the character before the fraction of a number.
        num_clients: number of clients N; null: as many as there are client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        path: str,
        target: str,
        features: list[str] | None = None,
        client: str | None = None,
        test_path: str | None = None,
        test_fraction: float = 0.2,
        separator: str = ",",
        encoding: str = "utf-8",
        decimal: str = ".",
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        if test_path is None and not 0 < test_fraction < 1:
            raise ConfigurationError(f"Expected test_fraction in (0, 1), or test_path, but got {test_fraction}")
        if features is not None and not features:
            raise ConfigurationError(
                "Expected at least one column in features, or null for all but the target and the client, but got []"
            )
        if features is not None and target in features:
            raise ConfigurationError(f"Expected features without the target but got {target!r} in features")
        if len(separator) != 1 or len(decimal) != 1 or separator == decimal:
            raise ConfigurationError(
                f"Expected two different characters as separator and decimal but got {separator!r} and {decimal!r}"
            )
        self.columns = Columns(target, client, features)
        self.path, self.test_path, self.test_fraction = path, test_path, test_fraction
        self.separator, self.encoding, self.decimal = separator, encoding, decimal

    def load(self) -> Arrays:  # noqa: D102
        table = self._read(self.path)
        features = self.columns.features_of(table, self.path)
        columns = replace(self.columns, features=features)
        table = usable_rows(table, columns, self.path, self.drop_unusable)
        if self.test_path is None:
            kept, held_out = hold_out(len(table), self.test_fraction, generator(0, "test"))
            train, test = table.iloc[kept.numpy()], table.iloc[held_out.numpy()]
        else:
            train = table
            test = usable_rows(self._read(self.test_path), columns, self.test_path, self.drop_unusable)
        train_labels, test_labels = cells(train[columns.target], test[columns.target])
        classes = sorted({*train_labels, *test_labels})
        ids = [None, None] if columns.client is None else cells(train[columns.client], test[columns.client])
        train_codes, test_codes, names = client_codes(*ids)
        return Arrays(
            _samples(train[features], train_labels, classes),
            _samples(test[features], test_labels, classes),
            num_classes=len(classes),
            train_clients=train_codes,
            test_clients=test_codes,
            client_names=names,
        )

    def _read(self, path: str) -> pd.DataFrame:
        return read_table(path, self.columns, self.separator, self.encoding, self.decimal)


def _samples(features: pd.DataFrame, labels: Sequence[object], classes: Sequence[object]) -> ClientData:
    numbers = {name: number for number, name in enumerate(classes)}
    inputs = torch.tensor(features.to_numpy("float64"), dtype=torch.get_default_dtype())
    return ClientData(inputs, torch.tensor([numbers[name] for name in labels], dtype=torch.int64))
