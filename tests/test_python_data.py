"""Samples and client ids as Python objects: tensors, arrays, tables and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hetfl.data import DatasetData, FederatedDataModule, TensorData
from hetfl.errors import ConfigurationError

INPUTS = np.arange(120, dtype=np.float32).reshape(60, 2)
TARGETS = np.arange(60) % 3
IDS = np.arange(60) % 4


def read_only(values: np.ndarray) -> np.ndarray:
    copy = values.copy()
    copy.flags.writeable = False
    return copy


def table_or_column(values: np.ndarray) -> Any:
    made = pd.DataFrame(values) if values.ndim > 1 else pd.Series(values)
    return made.set_axis(range(100, 100 + len(values)))  # with a different row index


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.from_numpy,
    "array": np.copy,
    "read-only array": read_only,
    "reversed array": lambda values: values[::-1].copy()[::-1],
    "other byte order": lambda values: values.astype(values.dtype.newbyteorder()),
    "pandas": table_or_column,
    "list": np.ndarray.tolist,
    "list of rows": list,
    "parameter": lambda values: torch.from_numpy(values).requires_grad_(values.dtype == np.float32),
}


def ready(module: FederatedDataModule) -> FederatedDataModule:
    module.setup("fit")
    return module


def samples(module: FederatedDataModule) -> list[tuple[Tensor, Tensor]]:
    return [
        (data.inputs, data.targets)
        for client in range(module.num_clients)
        for data in (module.client_data(client), module.client_data(client, "test"))
    ]


def tensor_data(form: Callable[[np.ndarray], Any]) -> FederatedDataModule:
    return TensorData(
        train_inputs=form(INPUTS), train_targets=form(TARGETS), test_inputs=form(INPUTS[:20]),
        test_targets=form(TARGETS[:20]), train_clients=form(IDS), test_clients=form(IDS[:20]),
    )  # fmt: skip


def dataset_data(form: Callable[[np.ndarray], Any]) -> FederatedDataModule:
    pairs: Any = [(form(row), form(target)) for row, target in zip(INPUTS, TARGETS[:, None], strict=True)]
    return DatasetData(train=pairs, test=pairs[:20], train_clients=form(IDS), test_clients=form(IDS[:20]))


@pytest.mark.parametrize("name", FORMS)
def test_tensor_data_is_equal_in_every_input_form(name: str) -> None:
    for (inputs, targets), (same_inputs, same_targets) in zip(
        samples(ready(tensor_data(FORMS[name]))), samples(ready(tensor_data(torch.from_numpy))), strict=True
    ):
        assert inputs.dtype == torch.float32
        assert not inputs.requires_grad
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)


@pytest.mark.parametrize("name", ["array", "read-only array", "other byte order", "tensor"])
def test_items_of_a_data_set_are_equal_in_every_input_form(name: str) -> None:
    reference = ready(tensor_data(torch.from_numpy))
    for (inputs, targets), (same_inputs, same_targets) in zip(
        samples(ready(dataset_data(FORMS[name]))), samples(reference), strict=True
    ):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)


@pytest.mark.parametrize("name", FORMS)
def test_client_names_are_their_ids_in_every_input_form(name: str) -> None:
    module = ready(tensor_data(FORMS[name]))
    assert module.client_names == (0, 1, 2, 3)
    for client in range(4):
        numbers = module.client_data(client).inputs[:, 0].long() // 2
        assert (numbers % 4 == client).all()


def test_client_ids_may_be_strings() -> None:
    names = pd.Series(["bob", "ann", "eve"] * 20)
    module = ready(
        TensorData(train_inputs=INPUTS, train_targets=TARGETS, test_inputs=INPUTS, test_targets=TARGETS,
                   train_clients=names)
    )  # fmt: skip
    assert module.client_names == ("ann", "bob", "eve")
    assert (module.client_data(0).inputs[:, 0].long() // 2 % 3 == 1).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_clients": ["a", 1] * 30}, "all numbers or all texts, one per sample, but got 1 among them"),
        ({"train_clients": [1.0, float("nan")] * 30}, "one per sample, but got nan among them"),
        ({"train_clients": pd.Series(["a", None] * 30)}, "one per sample, but got (None|nan) among them"),
        ({"train_inputs": [[1.0, 2.0], [3.0]]}, "Expected numbers in an array as training inputs but got list of no"),
        ({"train_inputs": np.array([["a"]])}, "Expected numbers in an array as training inputs but got ndarray of <U1"),
        ({"test_targets": pd.Series(["yes", "no"])}, "Expected numbers in an array as test targets but got Series of"),
        ({"test_targets": None}, "Expected numbers in an array as test targets but got NoneType"),
        (
            {"train_inputs": INPUTS.astype(np.int64)},
            r"test samples of int64 \(2,\), like the training samples, but got fl",
        ),
    ],
)
def test_inputs_that_are_not_arrays_of_numbers_are_refused_in_one_line(changed: dict[str, Any], message: str) -> None:
    fitting = {"train_inputs": INPUTS, "train_targets": TARGETS, "test_inputs": INPUTS, "test_targets": TARGETS}
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(TensorData(**{**fitting, **changed}, num_clients=None if "train_clients" in changed else 3))
    assert "\n" not in str(error.value)
