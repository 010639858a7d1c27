"""Data sets of the package ``datasets`` (Hugging Face)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData, as_tensor, client_codes
from hetfl.data.inputs import Padding, pixels_or_numbers, stack_both, stack_targets
from hetfl.data.module import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree


class HuggingFaceData(FederatedDataModule):
    """Columns of two tables of ``datasets``, given in Python or in folders that ``save_to_disk`` wrote.

    Input cells may be numbers, nested lists of numbers (such as token ids) or images. Tokenise texts beforehand with
    ``Dataset.map``, and turn text classes into numbers with ``class_encode_column``. Nothing is downloaded.

    Args:
        inputs: a column, which a net gets as a tensor; or a list of columns, which it gets as a dict by name.
        target: the column with the target; or a list of columns, whose numbers form a vector.
        client: the column with the client id, a number or a text; null: the partitioner decides.
        train: the training samples, a ``datasets.Dataset``; null: they are in a folder.
        test: the test samples, a ``datasets.Dataset``; null: they are in a folder.
        path: a folder with a ``DatasetDict`` with the splits ``train`` and ``test``; with ``test_path``, a folder with
            the ``Dataset`` of the training samples.
        test_path: a folder with the ``Dataset`` of the test samples.
        num_classes: number of classes K; null: the number in the description of the column, or else the largest class
            that occurs, plus 1.
        pad: the value behind the end of sequences that are shorter than the longest; null: all have the same length.
        pad_mask: whether a net gets ``{"tokens": padded, "mask": mask}``, the mask bool (n, T), True within a sequence.
        num_clients: number of clients N; null: the number of client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        inputs: str | list[str],
        target: str | list[str],
        client: str | None = None,
        train: Any = None,
        test: Any = None,
        path: str | None = None,
        test_path: str | None = None,
        num_classes: int | None = None,
        pad: float | None = None,
        pad_mask: bool = False,
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        given = [each is not None for each in (train, test, path, test_path)]
        if given not in ([True, True, False, False], [False, False, True, False], [False, False, True, True]):
            raise ConfigurationError(
                "Expected train and test, or path, or path and test_path, for HuggingFaceData but got other arguments"
            )
        if not inputs or not target:
            raise ConfigurationError(f"Expected columns as inputs and target but got {inputs!r} and {target!r}")
        self.inputs, self.target, self.client = inputs, target, client
        self.train, self.test, self.path, self.test_path = train, test, path, test_path
        self.num_labels, self.padding = num_classes, Padding(pad, pad_mask)

    def load(self) -> Arrays:  # noqa: D102
        tables = {"training": self.train, "test": self.test}
        if self.path is not None:
            tables = {
                "training": _table(self.path, "train", alone=self.test_path is not None),
                "test": _table(self.test_path or self.path, "test", alone=self.test_path is not None),
            }
        for where, table in tables.items():
            self._check(table, where)
        samples = [self._samples(table, where) for where, table in tables.items()]
        trees = stack_both(samples[0], samples[1], self.padding)
        targets = [self._targets(table, where) for where, table in tables.items()]
        ids = [self._ids(table) for table in tables.values()]
        train_codes, test_codes, names = client_codes(*ids)
        train, test = (ClientData(tree, target) for tree, target in zip(trees, targets, strict=True))
        return Arrays(train, test, self._num_classes(tables["training"]), train_codes, test_codes, names)

    def _check(self, table: Any, where: str) -> None:
        """Refuse a value that is not a table, and a table without a needed column; test samples need no client id."""
        listed = getattr(table, "column_names", None)
        if not isinstance(listed, list):
            raise ConfigurationError(
                f"Expected a datasets.Dataset as {where} samples but got {type(table).__name__}: choose a split of it"
            )
        wanted = [*_listed(self.inputs), *_listed(self.target)]
        wanted += [self.client] if self.client is not None and where == "training" else []
        if missing := [name for name in wanted if name not in listed]:
            raise ConfigurationError(f"Expected columns {missing} in the {where} samples but they have {listed}")
        if not len(table):
            raise ConfigurationError(f"Expected at least one {where} sample but got none")

    def _samples(self, table: Any, where: str) -> list[Tree]:
        """Return the inputs of each row."""
        columns = {
            name: [pixels_or_numbers(cell, f"{name!r} of {where} row {row}") for row, cell in enumerate(cells)]
            for name, cells in ((name, _cells(table, name)) for name in _listed(self.inputs))
        }
        if isinstance(self.inputs, str):
            return list(columns[self.inputs])
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    def _targets(self, table: Any, where: str) -> Tensor:
        columns = [_cells(table, name) for name in _listed(self.target)]
        rows = columns[0] if isinstance(self.target, str) else list(map(list, zip(*columns, strict=True)))
        cells = [as_tensor(cell, f"the target of {where} row {row}") for row, cell in enumerate(rows)]
        return stack_targets(cells, where)

    def _ids(self, table: Any) -> list[Any] | None:
        return _cells(table, self.client) if self.client is not None and self.client in table.column_names else None

    def _num_classes(self, table: Any) -> int | None:
        feature = table.features.get(self.target) if isinstance(self.target, str) else None
        return self.num_labels or getattr(feature, "num_classes", None)


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _cells(table: Any, name: str) -> list[Any]:
    """Return a column as plain Python values, independent of the format that was set."""
    cells: list[Any] = table.select_columns([name]).with_format(None)[:][name]
    return cells


def _table(folder: str, split: str, alone: bool) -> Any:
    """Return the table in a folder, or one of the splits in it.

    Args:
        folder: a folder that ``save_to_disk`` wrote.
        split: the name of the split.
        alone: whether the folder must have a single table, without splits.
    """
    # Imported here because the package is optional.
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ConfigurationError(
            "Expected the package datasets (HuggingFaceData) but it is not installed: pip install 'hetfl[huggingface]'"
        ) from error
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # pyarrow and the package raise many kinds of errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"Expected a folder that save_to_disk wrote in {folder} but got {reason}") from error
    if isinstance(loaded, dict) == alone:
        what = f"splits {list(loaded)}" if alone else "a table without splits: set test_path"
        raise ConfigurationError(f"Expected {'a table' if alone else 'splits'} in {folder} but got {what}")
    if alone:
        return loaded
    if split not in loaded:
        raise ConfigurationError(f"Expected a split {split} in {folder} but got {list(loaded)}")
    return loaded[split]
