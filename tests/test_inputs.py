"""Several inputs and sequences of different lengths, given as Python objects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from PIL import Image

from hetfl.data import DatasetData, FederatedDataModule, TensorData
from hetfl.errors import ConfigurationError
from hetfl.tree import in_words
from tests.conftest import small_levels, small_module
from tests.tree_cases import TOKENS, MaskedNet

COUNT, TEST = 24, 6
TARGETS = np.arange(COUNT) % 3
LENGTHS = [1 + i * 5 % 7 for i in range(COUNT)]
TEXTS = [[(i + t) % (TOKENS - 1) + 1 for t in range(length)] for i, length in enumerate(LENGTHS)]
NUMBERS = np.arange(2 * COUNT, dtype=np.float32).reshape(COUNT, 2)


def tensor_data(train: Any, test: Any, **settings: Any) -> FederatedDataModule:
    settings = {"num_clients": 2, "val_fraction": 0.0, **settings}
    targets = {"train_targets": TARGETS, "test_targets": TARGETS[:TEST]}
    module = TensorData(train_inputs=train, test_inputs=test, **{**targets, **settings})
    module.setup()
    return module


def dataset_data(train: list[Any], test: list[Any], **settings: Any) -> FederatedDataModule:
    pairs: list[Any] = [list(zip(inputs, TARGETS, strict=False)) for inputs in (train, test)]
    module = DatasetData(train=pairs[0], test=pairs[1], **{"num_clients": 2, "val_fraction": 0.0, **settings})
    module.setup()
    return module


SEQUENCES: dict[str, Callable[[list[list[int]]], Any]] = {
    "lists": list,
    "tensors": lambda texts: [torch.tensor(text) for text in texts],
    "arrays": lambda texts: [np.array(text) for text in texts],
    "column": lambda texts: pd.Series(texts, index=range(50, 50 + len(texts))),
    "array of lists": lambda texts: np.array([*texts, None], dtype=object)[:-1],
}


def by_hand(texts: list[list[int]], pad: int) -> torch.Tensor:
    return torch.tensor([[*text, *[pad] * (7 - len(text))] for text in texts])


@pytest.mark.parametrize("form", SEQUENCES)
@pytest.mark.parametrize("make", [tensor_data, dataset_data])
def test_sequences_are_padded_to_the_longest_of_all(make: Callable[..., FederatedDataModule], form: str) -> None:
    test = [text[:3] for text in TEXTS[:TEST]]  # shorter than the training sequences
    module = make(SEQUENCES[form](TEXTS), SEQUENCES[form](test), pad=0, train_clients=[0] * COUNT, num_clients=None)
    assert torch.equal(module.client_data(0).inputs, by_hand(TEXTS, 0))
    assert sorted(module.resident.all_test.inputs.tolist()) == sorted(by_hand(test, 0).tolist())
    masked = make(SEQUENCES[form](TEXTS), SEQUENCES[form](test), pad=9, pad_mask=True, train_clients=[0] * COUNT,
                  num_clients=None)  # fmt: skip
    inputs = masked.client_data(0).inputs
    assert list(inputs) == ["tokens", "mask"]
    assert torch.equal(inputs["tokens"], by_hand(TEXTS, 9))
    assert torch.equal(inputs["mask"], by_hand([[1] * n for n in LENGTHS], 0).bool())


def test_a_net_trains_on_padded_sequences_and_their_mask(fit: Callable[..., Trainer]) -> None:
    module = small_module(net=MaskedNet, levels=small_levels(1.0, 0.5))
    data = TensorData(train_inputs=TEXTS, train_targets=TARGETS, test_inputs=TEXTS, test_targets=TARGETS, pad=0,
                      pad_mask=True, num_clients=4)  # fmt: skip
    assert fit(module, data, rounds=1).callback_metrics["train/loss"].isfinite()


def test_sequences_of_rows_and_empty_sequences_are_padded() -> None:
    rows = [torch.full((i % 3, 2), float(i)) for i in range(COUNT)]
    padded = tensor_data(rows, rows[:TEST], pad=-1.5, train_clients=[0] * COUNT, num_clients=None)
    inputs = padded.client_data(0).inputs
    assert inputs.shape == (COUNT, 2, 2)
    for i in range(COUNT):
        assert inputs[i].tolist() == [[float(i)] * 2] * (i % 3) + [[-1.5] * 2] * (2 - i % 3)
    texts = [*TEXTS[:-1], []]
    module = tensor_data(texts, texts, test_targets=TARGETS, pad=0, train_clients=[0] * COUNT, num_clients=None)
    assert torch.equal(module.client_data(0).inputs, by_hand(texts, 0))


def test_only_sequences_of_several_inputs_are_padded() -> None:
    items = [{"text": text, "row": row, "age": 3} for text, row in zip(TEXTS, NUMBERS, strict=True)]
    inputs = dataset_data(items, items[:TEST], pad=0).client_data(0).inputs
    assert in_words(inputs) == "{text: int64 (12, 7), row: float32 (12, 2), age: int64 (12,)}"


def test_tuples_and_dicts_of_arrays_are_several_inputs() -> None:
    given = {"numbers": pd.DataFrame(NUMBERS), "more": (torch.arange(COUNT), TARGETS.tolist())}
    few = {"numbers": pd.DataFrame(NUMBERS[:TEST]), "more": (torch.arange(TEST), TARGETS[:TEST].tolist())}
    inputs = tensor_data(given, few).client_data(0).inputs
    assert in_words(inputs) == "{numbers: float32 (12, 2), more: (int64 (12,), int64 (12,))}"
    assert torch.equal(inputs["numbers"][:, 0].long() // 2, inputs["more"][0])
    pictures = [(Image.new("L", (3, 2), color=i), np.array([i], dtype=np.float32)) for i in range(COUNT)]
    inputs = dataset_data(pictures, pictures[:TEST]).client_data(0).inputs
    assert in_words(inputs) == "(uint8 (12, 1, 2, 3), float32 (12, 1))"
    assert torch.equal(inputs[0][:, 0, 0, 0].float(), inputs[1][:, 0])


def test_a_tuple_of_plain_numbers_is_one_input() -> None:
    rows = tuple(map(tuple, NUMBERS.tolist()))
    assert torch.equal(tensor_data(rows, rows[:TEST]).client_data(0).inputs,
                       tensor_data(NUMBERS, NUMBERS[:TEST]).client_data(0).inputs)  # fmt: skip


COLUMNS: dict[str, Any] = {
    "nullable": pd.DataFrame(NUMBERS).astype("Float64"),
    "several types": pd.DataFrame({"a": NUMBERS[:, 0] > 3, "b": NUMBERS[:, 1]}),
    "objects": pd.DataFrame(NUMBERS).astype(object),
    "rows": pd.Series(list(NUMBERS)),
    "rows as lists": pd.Series(NUMBERS.tolist()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_of_any_number_dtype_are_read(name: str) -> None:
    values = COLUMNS[name]
    inputs = tensor_data(values, values[:TEST], train_clients=[0] * COUNT, num_clients=None).client_data(0).inputs
    expected = torch.from_numpy(NUMBERS).clone()
    if name == "several types":
        expected[:, 0] = (expected[:, 0] > 3).float()
    assert torch.equal(inputs.float(), expected)


IDS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list, "tuple": tuple, "array": np.array, "tensor": torch.tensor, "column": pd.Series,
    "table of one column": pd.DataFrame, "nullable": lambda ids: pd.Series(ids, dtype="Int64"),
    "categories": lambda ids: pd.Series(ids, dtype="category"),
}  # fmt: skip


@pytest.mark.parametrize("form", IDS)
def test_client_ids_are_accepted_in_any_form(form: str) -> None:
    module = tensor_data(NUMBERS, NUMBERS[:TEST], train_clients=IDS[form]([7, 3, 9] * 8), num_clients=None)
    assert module.client_names == (3, 7, 9)
    assert (module.client_data(0).inputs[:, 0] // 2 % 3 == 1).all()


RAGGED = [torch.ones(2), torch.ones(3)] * 12


@pytest.mark.parametrize(
    ("make", "train", "settings", "message"),
    [
        (tensor_data, TEXTS, {"pad_mask": True}, "Expected pad, the value behind .* with pad_mask: true but got null"),
        (tensor_data, TEXTS, {"pad": 0.5}, r"whole number from .* as pad, for inputs of torch.int64, but got 0.5"),
        (tensor_data, TEXTS, {"pad": math.inf}, "Expected a finite number as pad, or null, but got inf"),
        (tensor_data, TEXTS, {"pad": math.nan}, "Expected a finite number as pad, or null, but got nan"),
        (tensor_data, TEXTS, {"pad": 1e30}, r"from -9.* to 9.* as pad, for inputs of torch.int64, but got 1e\+30"),
        (tensor_data, RAGGED, {"pad": 1e300}, r"as pad, for inputs of torch.float32, but got 1e\+300"),
        (tensor_data, (torch.ones(COUNT),), {"pad": 0}, "a list of sequences as training inputs with pad but got a t"),
        (tensor_data, 3, {"pad": 0}, "list of sequences as training inputs but got int"),
        (tensor_data, [["a"]] * COUNT, {"pad": 0}, "numbers in an array as the input at training position 0 but got l"),
        (dataset_data, RAGGED, {}, r"training inputs of one shape, \(2,\), but got \(3,\) at position 1: set pad"),
        (dataset_data, [torch.ones(2, 1), torch.ones(1, 2)] * 12, {"pad": 0}, r"differ only in length, .* \(1, 2\), "),
        (dataset_data, [1.0] * COUNT, {"pad": 0, "pad_mask": True}, r"with pad_mask: true but got float32 \(\)"),
        (dataset_data, [{"a": 1}] * COUNT, {"pad": 0, "pad_mask": True}, "one sequence a sample with pad_mask: true"),
        (dataset_data, [{"a": 1}, {"b": 1}] * 12, {}, "training inputs of one structure: expected dicts of a but"),
        (dataset_data, [{"a": "x"}] * COUNT, {}, "numbers in an array as the input at training position 0 'a' but"),
        (tensor_data, {"a": NUMBERS, "b": NUMBERS[:5]}, {}, "training inputs as targets, .* but got 24, 5 and 24"),
        (tensor_data, {}, {}, "training inputs of tensors with a row per sample but got none"),
        (tensor_data, {"a": NUMBERS}, {}, r"test samples of \{a: float32 \(2,\)\}, like the .* got float32 \(2,\)"),
    ],
)  # fmt: skip
def test_unreadable_inputs_are_refused_in_one_line(
    make: Callable[..., Any], train: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        make(train, NUMBERS[:TEST] if isinstance(train, dict) else list(train)[:TEST] if train != 3 else 3, **settings)
    assert "\n" not in str(error.value)


def test_float_targets_reach_the_objective_unchanged() -> None:
    """Only the objective decides whether float targets are allowed; here they reach its check unchanged."""
    pairs: Any = [(row, [0.5, float(i)]) for i, row in enumerate(NUMBERS)]
    with pytest.raises(ConfigurationError, match=r"targets .* torch.float32 .*\(24, 2\)"):
        DatasetData(train=pairs, test=pairs, num_clients=2, num_classes=2).setup()
