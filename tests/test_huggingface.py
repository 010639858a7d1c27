"""Data sets of the package ``datasets``, created here; without the package most tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image

from hetfl.data import HuggingFaceData
from hetfl.errors import ConfigurationError
from hetfl.tree import in_words, length
from tests.conftest import small_levels, small_module
from tests.tree_cases import MaskedNet

ROWS, TEST = 30, 9
WORDS = ("no", "perhaps", "yes")


@pytest.fixture(scope="module")
def datasets() -> Any:
    """Return the package without progress output; skip the test if the package is not installed."""
    package = pytest.importorskip("datasets", reason="HuggingFaceData needs datasets: pip install 'hetfl[huggingface]'")
    package.disable_progress_bars()
    return package


def rows(count: int) -> dict[str, list[Any]]:
    return {
        "tokens": [[(i + t) % 11 + 1 for t in range(1 + i * 3 % 5)] for i in range(count)],
        "row": [[float(i), i / 2] for i in range(count)],
        "age": list(range(count)),
        "label": [i % 3 for i in range(count)],
        "other": [float(i) / 4 for i in range(count)],
        "site": [f"clinic{i // 3 % 4}" for i in range(count)],
        "all": [0] * count,
        "word": [WORDS[i % 3] for i in range(count)],
    }


@pytest.fixture(scope="module")
def tables(datasets: Any) -> dict[str, Any]:
    """Return tables whose labels have names; no row has the last label."""
    label = datasets.ClassLabel(names=[*WORDS, "never"])
    return {
        name: datasets.Dataset.from_dict(rows(count)).cast_column("label", label)
        for name, count in (("train", ROWS), ("test", TEST))
    }


def ready(tables: dict[str, Any], **arguments: Any) -> HuggingFaceData:
    settings = {"inputs": "row", "target": "label", "client": "site", "val_fraction": 0.0, **tables}
    module = HuggingFaceData(**{**settings, **arguments})
    module.setup()
    return module


@pytest.mark.parametrize("format", [None, "numpy", "torch", "pandas"])
def test_a_column_becomes_a_tensor_in_every_format(tables: dict[str, Any], format: str | None) -> None:
    module = ready({name: table.with_format(format) for name, table in tables.items()})
    assert (module.num_classes, module.client_names) == (4, ("clinic0", "clinic1", "clinic2", "clinic3"))
    for client in range(4):
        for split, count in (("train", ROWS), ("test", TEST)):
            data = module.client_data(client, split)  # type: ignore[arg-type]
            positions = [i for i in range(count) if i // 3 % 4 == client]
            assert torch.equal(data.inputs, torch.tensor([[i, i / 2] for i in positions]).view(-1, 2))
            assert torch.equal(data.targets, torch.tensor(positions, dtype=torch.int64) % 3)


def test_several_columns_become_a_dict_and_sequences_are_padded(tables: dict[str, Any]) -> None:
    module = ready(tables, inputs=["tokens", "row", "age"], pad=0, num_classes=3, client="all")
    inputs = module.client_data(0).inputs
    assert in_words(inputs) == "{tokens: int64 (30, 5), row: float32 (30, 2), age: int64 (30,)}"
    assert inputs["tokens"].tolist() == [[*sequence, *[0] * (5 - len(sequence))] for sequence in rows(ROWS)["tokens"]]
    assert module.num_classes == 3
    assert length(module.resident.all_test.inputs) == TEST


def test_images_become_uint8_tensors(datasets: Any) -> None:
    pictures = [Image.new("L", (3, 2), color=i) for i in range(ROWS)]
    features = {"image": datasets.Image(), **{name: datasets.Value("int64") for name in ("label", "all")}}
    columns = {"image": pictures, "label": rows(ROWS)["label"], "all": [0] * ROWS}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    inputs = ready({"train": table, "test": table}, inputs="image", client="all").client_data(0).inputs
    assert in_words(inputs) == "uint8 (30, 1, 2, 3)"
    assert inputs[:, 0, 0, 0].tolist() == list(range(ROWS))


def test_saved_folders_are_read(datasets: Any, tables: dict[str, Any], tmp_path: Path) -> None:
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "both")
    for name, table in tables.items():
        table.save_to_disk(tmp_path / name)
    expected = ready(tables)
    for paths in ({"path": "both"}, {"path": "train", "test_path": "test"}):
        module = ready({}, **{name: str(tmp_path / path) for name, path in paths.items()})
        assert module.num_classes == 4
        for client in range(4):
            assert torch.equal(module.client_data(client).inputs, expected.client_data(client).inputs)
        assert torch.equal(module.resident.all_test.targets, expected.resident.all_test.targets)


def test_a_net_trains_on_tokens_and_their_mask(fit: Callable[..., Trainer], tables: dict[str, Any]) -> None:
    module = small_module(net=MaskedNet, levels=small_levels(1.0, 0.5))
    data = HuggingFaceData(
        **tables, inputs="tokens", target="label", num_classes=3, client="site", pad=0, pad_mask=True
    )
    assert fit(module, data, rounds=1).callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "text"}, r"Expected columns \['text'\] in the training samples but they have \['tokens', 'row'"),
        ({"inputs": ["row", "text"]}, r"Expected columns \['text'\] in the training samples"),
        ({"client": "who"}, r"Expected columns \['who'\] in the training samples"),
        ({"inputs": []}, r"columns as inputs and target but got \[\] and 'label'"),
        ({"inputs": "word"}, "numbers in an array as 'word' of training row 0 but got str"),
        ({"target": "word"}, "numbers in an array as the target of training row 0 but got str"),
        ({"inputs": "tokens"}, r"training inputs of one shape, \(1,\), but got \(4,\) at position 1: set pad"),
        ({"target": "other"}, r"training targets as whole numbers .* but got torch.float32 of shape \(30,\)"),
        (
            {"target": ["other", "age"]},
            r"training targets as whole numbers .* but got torch.float32 of shape \(30, 2\)",
        ),
        ({"path": "somewhere"}, "train and test, or path, or path and test_path, for HuggingFaceData but got others?"),
        ({"test": None}, "train and test, or path, or path and test_path, for HuggingFaceData but got other"),
        ({"train": [1, 2]}, "Expected a datasets.Dataset as training samples but got list: choose a split of it"),
    ],
)
def test_impossible_columns_are_refused_in_one_line(tables: dict[str, Any], arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(tables, **arguments)
    assert "\n" not in str(error.value)


def test_tables_without_rows_and_folders_without_tables_are_refused(
    datasets: Any, tables: dict[str, Any], tmp_path: Path
) -> None:
    datasets.DatasetDict({"train": tables["train"]}).save_to_disk(tmp_path / "one")
    tables["train"].save_to_disk(tmp_path / "table")
    one, table = str(tmp_path / "one"), str(tmp_path / "table")
    for paths, message in (
        (
            {"path": str(tmp_path / "none")},
            "Expected a folder that save_to_disk wrote in .*none but got FileNotFoundError",
        ),
        ({"path": one}, r"Expected a split test in .*one but got \['train'\]"),
        ({"path": table}, r"Expected splits in .*table but got a table without splits: set test_path"),
        ({"path": table, "test_path": one}, r"Expected a table in .*one but got splits \['train'\]"),
    ):
        with pytest.raises(ConfigurationError, match=message) as error:
            ready({}, **paths)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match="at least one test sample but got none"):
        ready({**tables, "test": tables["test"].select([])})
    with pytest.raises(
        ConfigurationError, match="datasets.Dataset as training samples but got DatasetDict: choose a s"
    ):
        ready({**tables, "train": datasets.DatasetDict(tables)})


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r"package datasets .*: pip install 'hetfl\[huggingface\]'") as error:
        ready({}, path="folder")
    assert "\n" not in str(error.value)


class Table:
    """The part of ``datasets.Dataset`` that hetfl uses."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.column_names = columns, list(columns)
        self.features = dict.fromkeys(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows: slice) -> dict[str, list[Any]]:
        return {name: cells[rows] for name, cells in self.columns.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table({name: self.columns[name] for name in names})

    def with_format(self, format: None) -> Table:
        return self


def test_a_stand_in_for_the_package_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """This also works where the package is not installed."""
    splits = {"train": Table(rows(ROWS)), "test": Table(rows(TEST))}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk={"folder": splits}.__getitem__))
    module = ready({}, path="folder", inputs=["row", "age"])
    assert module.num_classes == 3
    assert in_words(module.client_data(0).inputs) == "{row: float32 (9, 2), age: int64 (9,)}"
    assert module.client_names == ("clinic0", "clinic1", "clinic2", "clinic3")
