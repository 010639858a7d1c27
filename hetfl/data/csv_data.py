"""Tables of numbers in CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hetfl.data.arrays import Arrays, ClientData, client_codes
from hetfl.data.module import FederatedDataModule
from hetfl.data.split import hold_out
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator

if TYPE_CHECKING:
    import pandas as pd


class CSVData(FederatedDataModule):
    """One sample a row: numeric features, a class, and perhaps the client that it belongs to.

    Classes may be any values; sorted, they are 0 to K-1. Features are taken as they are: scale them beforehand, or in
    ``transform``.

    Args:
        path: the CSV file with a header line.
        target: the column with the class.
        features: the feature columns; null: all columns but the target and the client id.
        client: the column with the client id; null: the partitioner decides.
        test_path: a second file with the test rows; null: some rows of the first.
        test_fraction: without ``test_path``, the part of the rows that is the test set, whatever the seed.
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
        self.path, self.target, self.features, self.client = path, target, features, client
        self.test_path, self.test_fraction = test_path, test_fraction

    def load(self) -> Arrays:  # noqa: D102
        table = _read(self.path)
        if self.test_path is None:
            kept, held_out = hold_out(len(table), self.test_fraction, generator(0, "test"))
            train, test = table.iloc[kept.numpy()], table.iloc[held_out.numpy()]
        else:
            train, test = table, _read(self.test_path)
        features = self.features
        if features is None:
            features = [name for name in table.columns if name not in (self.target, self.client)]
        if not features:
            raise ConfigurationError(f"Expected a feature column in {self.path} but it has {list(table.columns)}")
        needed = [*features, self.target, *([] if self.client is None else [self.client])]
        for part, path in ((train, self.path), (test, self.test_path or self.path)):
            _check_columns(part, features, needed, path)
        classes = sorted({*train[self.target], *test[self.target]})
        train_codes = test_codes = None
        if self.client is not None:
            train_codes, test_codes = client_codes(train[self.client].tolist(), test[self.client].tolist())
        return Arrays(
            _samples(train, features, self.target, classes),
            _samples(test, features, self.target, classes),
            num_classes=len(classes),
            train_clients=train_codes,
            test_clients=test_codes,
        )


def _read(path: str) -> pd.DataFrame:
    # Not at the top: pandas takes a tenth of a second, which other data sets need not pay.
    import pandas as pd

    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Expected a CSV file in {path} but got: {str(error).splitlines()[0]}") from error


def _check_columns(table: pd.DataFrame, features: list[str], needed: list[str], path: str) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ConfigurationError(f"Expected columns {missing} in {path} but it has {list(table.columns)}")
    text = [name for name in features if table[name].dtype.kind not in "biuf"]
    if text:
        raise ConfigurationError(f"Expected numbers in the feature columns of {path} but {text} have other values")
    empty = [name for name in needed if table[name].isna().any()]
    if empty:
        raise ConfigurationError(f"Expected a value in every row of {path} but columns {empty} have empty cells")


def _samples(table: pd.DataFrame, features: list[str], target: str, classes: list[object]) -> ClientData:
    numbers = {name: number for number, name in enumerate(classes)}
    inputs = torch.tensor(table[features].to_numpy("float64"), dtype=torch.get_default_dtype())
    targets = torch.tensor([numbers[name] for name in table[target]], dtype=torch.int64)
    return ClientData(inputs, targets)
