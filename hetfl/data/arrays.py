"""A data set in memory: all its samples, and the samples of one client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.objectives import Objective, contract
from hetfl.tree import Tree, in_words, leaves, mapped, taken

ArrayLike = Any
"""A tensor, a NumPy array, a table or column of pandas, or a list."""


Samples = Literal["train", "validation", "test"]
"""Samples of a client: those that it trains on, those that it holds out of them, and its test samples."""


@dataclass(frozen=True)
class ClientData:
    """Samples as they lie in memory, before any transform.

    Attributes:
        inputs: uint8 images (n, C, height, width), float features or token ids (n, ...), or a tuple, list or dict of
            tensors of n rows each.
        targets: shape (n, ...), as the objective takes them: for classification class numbers, int64, shape (n,).
    """

    inputs: Tree
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Arrays:
    """A whole data set, as :meth:`hetfl.data.FederatedDataModule.load` returns it.

    Attributes:
        train: the training samples, from which validation samples are held out.
        test: the test samples; no setting is chosen by them.
        num_classes: number of classes K, or of other outputs of a net; None: the largest that the targets need.
        train_clients: int64, shape (n,): the client id of each training sample; None: the data has no client ids.
        test_clients: the same for the test samples.
        client_names: the name of each client, indexed by id; None: the ids are the names.
        objective: what the targets are, unless the user sets another objective; None: classes.

    Raises:
        ConfigurationError: lengths, shapes or types of samples disagree.
    """

    train: ClientData
    test: ClientData
    num_classes: int | None = None
    train_clients: Tensor | None = None
    test_clients: Tensor | None = None
    client_names: tuple[str, ...] | tuple[int, ...] | None = None
    objective: Objective | None = None

    def name_of(self, client_id: int) -> str | int:
        """Return the name of a client in the user's data."""
        return client_id if self.client_names is None else self.client_names[client_id]

    def __post_init__(self) -> None:
        _check_samples(self.train, self.train_clients, "training")
        _check_samples(self.test, self.test_clients, "test")
        _check_alike(self.train.inputs, self.test.inputs)

    def meeting(self, objective: Objective) -> Arrays:
        """Return the data set with its targets converted for an objective.

        Raises:
            ConfigurationError: the objective does not take such targets.
        """
        train, test = (
            replace(data, targets=contract.prepared_targets(objective, data.targets, where))
            for data, where in ((self.train, "training"), (self.test, "test"))
        )
        size = self.num_classes
        if size is None:
            size = max(contract.size_of(objective, train.targets), contract.size_of(objective, test.targets))
        for data, where in ((train, "training"), (test, "test")):
            contract.check_targets(objective, data.targets, size, where)
        return replace(self, train=train, test=test, num_classes=size, objective=objective)

    def classes(self, data: ClientData) -> Tensor:
        """Return the class of each sample of the training or test data, int64, shape (n,); 0 where it has no class."""
        labels = None if self.objective is None else self.objective.single_labels(data.targets)
        return torch.zeros(len(data), dtype=torch.int64) if labels is None else labels

    @property
    def outputs(self) -> int:
        """Number K of classes, or of other outputs of a net; available after :meth:`meeting`."""
        assert self.num_classes is not None
        return self.num_classes


def _check_samples(data: ClientData, clients: Tensor | None, where: str) -> None:
    targets, parts = data.targets, leaves(data.inputs)
    if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) or "none"
        raise ConfigurationError(f"Expected {where} inputs of tensors with a row per sample but got {kinds}")
    lengths = list(dict.fromkeys(len(part) for part in parts))
    if lengths != [len(targets)] or not len(targets):
        got = ", ".join(map(str, lengths))
        raise ConfigurationError(
            f"Expected as many {where} inputs as targets, at least one, but got {got} and {len(targets)}"
        )
    if clients is not None and clients.shape != (len(targets),):
        raise ConfigurationError(
            f"Expected one client id per {where} sample ({len(targets)}) but got shape {tuple(clients.shape)}"
        )


def _check_alike(train: Tree, test: Tree) -> None:
    """Refuse test inputs whose structure, shapes or kind (floats or integers) differ from the training inputs."""
    rows = [taken(inputs, 0) for inputs in (train, test)]
    shapes = [mapped(lambda leaf: torch.empty(leaf.shape, device="meta"), row) for row in rows]
    floats = [[leaf.is_floating_point() for leaf in leaves(row)] for row in rows]
    if in_words(shapes[0]) == in_words(shapes[1]) and floats[0] == floats[1]:
        return
    if all(isinstance(row, Tensor) for row in rows) and floats[0] == floats[1]:
        expected, got = (str(tuple(row.shape)) for row in rows)
        raise ConfigurationError(f"Expected test inputs of shape {expected}, like the training inputs, but got {got}")
    raise ConfigurationError(
        f"Expected test samples of {in_words(rows[0])}, like the training samples, but got {in_words(rows[1])}"
    )


def class_codes(*labels: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
    """Return labels as int64 class numbers, and the sorted classes; a number is the position among the sorted classes.

    >>> class_codes(["cat", "ant"], ["bee"])
    ([tensor([2, 0]), tensor([1])], ['ant', 'bee', 'cat'])
    """
    classes = sorted({label for each in labels for label in each})
    numbers = {label: number for number, label in enumerate(classes)}
    return [torch.tensor([numbers[label] for label in each], dtype=torch.int64) for each in labels], classes


def client_codes(
    train_ids: Any, test_ids: Any
) -> tuple[Tensor | None, Tensor | None, tuple[str, ...] | tuple[int, ...] | None]:
    """Return client ids as int64 codes, and the sorted distinct ids; a code is a position among these ids.

    Missing ids (None) give None.

    Args:
        train_ids: a list, an array, a column of a table or a tensor of numbers or texts; None: no ids.
        test_ids: the same for the test samples.

    Raises:
        ConfigurationError: an id is missing, or numbers and texts are mixed.

    >>> client_codes(["bob", "ann", "bob"], ["ann"])
    (tensor([1, 0, 1]), tensor([0]), ('ann', 'bob'))
    """
    listed = [None if ids is None else plain_list(ids) for ids in (train_ids, test_ids)]
    given = [each for ids in listed for each in ids or ()]
    texts = isinstance(given[0], str) if given else False
    for each in given:
        if not isinstance(each, str if texts else int | float) or each != each:
            raise ConfigurationError(
                f"Expected client ids that are all numbers or all texts, one per sample, but got {each!r} among them"
            )
    names = tuple(sorted(set(given)))
    codes = {name: code for code, name in enumerate(names)}
    train, test = (
        None if ids is None else torch.tensor([codes[name] for name in ids], dtype=torch.int64) for ids in listed
    )
    return train, test, names or None


def as_tensor(values: Any, where: str) -> Tensor:
    """Return a tensor, an array, a table or column of pandas, or nested lists of numbers as a tensor.

    Args:
        values: the values; an array that torch can share is not copied.
        where: what the values are, for the message.

    Raises:
        ConfigurationError: the values are not numbers, or do not form an array.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        if array.dtype == object:  # a table of several types, a column that may have missing values, a column of rows
            array = np.array(array.tolist())
        if array.dtype.kind == "f" and not hasattr(values, "dtype"):  # Python floats have no dtype to keep
            return torch.tensor(array, dtype=torch.get_default_dtype())
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        # torch refuses negative strides, and warns of arrays that are read-only.
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        kind = f"{type(values).__name__} of {getattr(values, 'dtype', 'no common type')}"
        raise ConfigurationError(f"Expected numbers in an array as {where} but got {kind}") from error


def plain_list(values: Any) -> list[Any]:
    """Return the values of a list, an array, a column of a table or a tensor as plain Python numbers and texts."""
    if hasattr(values, "iloc") and values.ndim == 2 and values.shape[1] == 1:  # a table of one column
        values = values.iloc[:, 0]
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [each.item() if hasattr(each, "item") else each for each in listed]
