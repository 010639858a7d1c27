"""Categories, empty cells and targets of CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from hetfl.data import CSVData, FederatedDataModule
from hetfl.data.csv_table import Columns, read_table
from hetfl.data.csv_values import number_targets
from hetfl.errors import ConfigurationError
from hetfl.tree import in_words

ROWS = 60


def table(colours: tuple[str, ...] = ("red", "blue", "NA")) -> pd.DataFrame:
    number = np.arange(ROWS)
    return pd.DataFrame(
        {
            "number": number,
            "colour": np.array(colours)[number % len(colours)],
            "half": number / 2,
            "zip": np.array(["01", "1", "10"])[number // 20],
            "sick": number % 2,
            "well": 1 - number % 2,
            "dose": number * 0.25,
        }
    )


def written(folder: Path, name: str = "table", **columns: Any) -> str:
    path = folder / f"{name}.csv"
    table().assign(**columns).to_csv(path, index=False)
    return str(path)


def read(path: str, **arguments: Any) -> FederatedDataModule:
    """Return data with all training rows at one client, in order, and rows of the same file as test set."""
    settings = {"target": "sick", "features": ["number", "colour", "half", "zip"], "test_path": path}
    module = CSVData(path=path, **{**settings, "num_clients": 1, "val_fraction": 0.0, **arguments})
    module.setup()
    return module


def in_order(inputs: Tensor) -> Tensor:
    return inputs[inputs[:, 0].argsort()]


def test_one_hot_categories_take_the_place_of_their_column(tmp_path: Path) -> None:
    data = read(written(tmp_path), categorical=["colour", "zip"]).client_data(0)
    expected = pd.get_dummies(table()[["number", "colour", "half", "zip"]], columns=["colour", "zip"], dtype=float)
    order = ["number", "colour_NA", "colour_blue", "colour_red", "half", "zip_01", "zip_1", "zip_10"]
    assert torch.equal(in_order(data.inputs), torch.tensor(expected[order].to_numpy(), dtype=torch.float32))


def test_category_codes_are_a_separate_input_beside_numbers(tmp_path: Path) -> None:
    module = read(written(tmp_path), categorical=["colour", "zip"], categories="codes")
    inputs = module.client_data(0).inputs
    assert in_words(inputs) == "{numbers: float32 (60, 2), categories: int64 (60, 2)}"
    assert isinstance(module, CSVData)
    assert module.features is not None
    assert module.features.categories == {"colour": ("NA", "blue", "red"), "zip": ("01", "1", "10")}
    for (number, half), (colour, code) in zip(inputs["numbers"].tolist(), inputs["categories"].tolist(), strict=True):
        assert half == number / 2
        assert ("NA", "blue", "red")[colour - 1] == ("red", "blue", "NA")[int(number) % 3]
        assert code == 1 + int(number) // 20
    only = read(written(tmp_path), categorical=["colour"], features=["colour"], categories="codes")
    assert in_words(only.client_data(0).inputs) == "{numbers: float32 (60, 0), categories: int64 (60, 1)}"


@pytest.mark.parametrize("form", ["one_hot", "codes"])
def test_an_unknown_category_counts_as_none(tmp_path: Path, form: str) -> None:
    test = written(tmp_path, "test", colour="green")
    module = read(written(tmp_path), test_path=test, categorical=["colour", "zip"], categories=form)
    inputs = module.resident.all_test.inputs
    assert not (inputs["categories"][:, 0] if form == "codes" else inputs[:, 1:4]).any()
    assert (inputs["categories"][:, 1] if form == "codes" else inputs[:, 5:8]).any()


def test_categories_that_occur_only_in_test_rows_are_known(tmp_path: Path) -> None:
    colours = ["red"] * (ROWS - 1) + ["blue"]
    for position in range(ROWS):  # there are two columns, whether the row is for training or for testing
        inputs = read(written(tmp_path, colour=np.roll(colours, position)), test_path=None, features=["colour"],
                      categorical=["colour"]).client_data(0).inputs  # fmt: skip
        assert inputs.shape[1] == 2


def spoilt(folder: Path) -> str:
    half, colour = table()["half"].to_list(), table()["colour"].to_list()
    return written(folder, half=[None if i in (4, 5) else x for i, x in enumerate(half)],
                   colour=["" if i == 7 else x for i, x in enumerate(colour)])  # fmt: skip


@pytest.mark.parametrize(("missing", "value"), [("mean", None), (-1.5, -1.5), (0, 0.0)])
def test_an_empty_cell_is_replaced_by_a_mean_or_a_number(tmp_path: Path, missing: Any, value: float | None) -> None:
    inputs = in_order(read(spoilt(tmp_path), categorical=["colour", "zip"], missing=missing).client_data(0).inputs)
    known = [i / 2 for i in range(ROWS) if i not in (4, 5)]
    filled = sum(known) / len(known) if value is None else value
    assert inputs[4:6, 4].tolist() == pytest.approx([filled] * 2)
    assert torch.equal(inputs[6:, 4], torch.arange(6, ROWS) / 2)
    assert inputs[7, 1:4].tolist() == [0, 0, 0]
    assert (inputs[:, 1:4].sum(1) == 1).sum() == ROWS - 1


def test_the_mean_is_over_training_rows_only(tmp_path: Path) -> None:
    module = read(spoilt(tmp_path), test_path=None, categorical=["colour", "zip"], missing="mean")
    train, test = in_order(module.client_data(0).inputs), in_order(module.resident.all_test.inputs)
    empty = {4.0, 5.0}
    known = [row[4].item() for row in train if row[0].item() not in empty]
    filled = [row[4].item() for part in (train, test) for row in part if row[0].item() in empty]
    assert filled == pytest.approx([sum(known) / len(known)] * 2)


def test_rows_with_empty_cells_are_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 60 rows of .* have empty cells and are left out"):
        module = read(spoilt(tmp_path), categorical=["colour", "zip"], missing="drop")
    numbers = in_order(module.client_data(0).inputs)[:, 0].tolist()
    assert numbers == [i for i in range(ROWS) if i not in (4, 5, 7)]


@pytest.mark.parametrize("missing", ["refuse", "drop", "mean", 0])
def test_infinite_cells_are_refused_with_any_missing_setting(tmp_path: Path, missing: Any) -> None:
    path = written(tmp_path, half=[np.inf, *table()["half"][1:]])
    with pytest.raises(ConfigurationError, match=r"in column 'half', row 1: set drop_unusable"):
        read(path, features=["number", "half"], missing=missing)
    with pytest.warns(UserWarning, match="1 of 60 rows of .* have unusable values and are left out"):
        assert len(read(path, features=["half"], missing=missing, drop_unusable=True).client_data(0)) == ROWS - 1


def targets(path: str, **arguments: Any) -> Tensor:
    columns = Columns(client=None, features=["number"], **arguments)
    return number_targets(read_table(path, columns, ",", "utf-8", "."), columns, path)


def test_targets_are_numbers_or_several_columns(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert torch.equal(targets(path, target="dose", numbers=True), torch.arange(ROWS) / 4)
    both = targets(path, target=["dose", "sick"], numbers=True)
    assert torch.equal(both, torch.stack([torch.arange(ROWS) / 4, torch.arange(ROWS) % 2], dim=1))
    labels = targets(path, target=["sick", "well"])
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.stack([torch.arange(ROWS) % 2, 1 - torch.arange(ROWS) % 2], dim=1))
    truths = written(tmp_path, sick=table()["sick"] > 0, well=table()["well"] > 0)
    assert torch.equal(targets(truths, target=["sick", "well"]), labels)


def test_a_row_without_a_number_as_target_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, dose=[None, *table()["dose"][1:]])
    with pytest.raises(ConfigurationError, match=r"empty, infinite or too large ones in column 'dose', row 1: set"):
        read(path, target="dose", target_kind="number", features=["number"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"numbers in the feature columns of .* but \['colour'\] have other values: name them in categorical if"),
        ({"categorical": ["color"]}, r"categorical columns among the features but got \['color'\]"),
        ({"categorical": ["color"], "features": None}, r"Expected columns \['color'\] in .* but it has"),
        ({"categorical": ["sick"], "features": None}, "features without the target but got 'sick' in features"),
        ({"client": "half"}, "features without the client but got 'half' in features"),
        ({"categories": "hot"}, "categories one_hot or codes but got 'hot'"),
        ({"missing": "median"}, "missing refuse, drop, mean or a finite number but got 'median'"),
        ({"missing": float("nan")}, "missing refuse, drop, mean or a finite number but got nan"),
        ({"target": []}, r"at least one column in target but got \[\]"),
        ({"target": ["sick", "dose"], "features": ["number"]}, r"0 or 1 in target columns \['dose'\]"),
        ({"target": ["sick", "colour"], "features": ["number"]}, r"numbers in the target columns .*\['colour'\]"),
        ({"target": "colour", "target_kind": "number", "features": ["number"]}, r"numbers in the target columns"),
        ({"target_kind": "text"}, "target_kind class or number or null but got 'text'"),
        ({"target": ["sick", "ill"], "features": ["number"]}, r"Expected columns \['ill'\] in"),
    ],
)  # fmt: skip
def test_impossible_columns_are_refused_in_one_line(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        read(written(tmp_path), **arguments)
    assert "\n" not in str(error.value)


def test_a_message_names_the_file_with_the_wrong_target(tmp_path: Path) -> None:
    test = written(tmp_path, "held_out", sick=2 * table()["sick"])
    with pytest.raises(ConfigurationError, match=r"0 or 1 in target columns \['sick'\] of .*held_out.csv"):
        read(written(tmp_path), target=["sick", "well"], features=["number"], test_path=test)


@pytest.mark.parametrize(("given", "missing"), [("mean", "mean"), ("-1", -1.0), ("drop", "drop")])
def test_settings_are_read_from_a_configuration(tmp_path: Path, given: str, missing: Any) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(FederatedDataModule, "data")
    text = (
        f"data:\n  class_path: hetfl.data.CSVData\n  init_args:\n    path: {written(tmp_path)}\n"
        f"    target: [sick, well]\n    categorical: [colour]\n    categories: codes\n    missing: {given}\n"
    )
    data = parser.instantiate(parser.parse_string(text)).data
    columns = data.columns
    assert (columns.target, columns.categorical, columns.missing) == (["sick", "well"], ["colour"], missing)


@pytest.mark.parametrize("missing", ["mean", "drop"])
def test_a_column_without_any_value_is_refused(tmp_path: Path, missing: str) -> None:
    path = written(tmp_path, half="")
    message = r"a training row of columns \['half'\] for mi" if missing == "mean" else "a row without empty cells in .*"
    with pytest.raises(ConfigurationError, match=message):
        read(path, features=["number", "half"], missing=missing)
