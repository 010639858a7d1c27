"""What CSVData makes of tables, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from hetfl.data import CSVData, FederatedDataModule, Plain
from hetfl.errors import ConfigurationError

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def ready(module: FederatedDataModule) -> FederatedDataModule:
    module.setup("fit")
    return module


def write_table(path: Path, rows: int = 60) -> Path:
    lines = [f"{i},{i / 2},{'yes' if i % 3 else 'no'},clinic{i % 4}" for i in range(rows)]
    path.write_text("\n".join(["number,half,sick,where", *lines]))
    return path


def test_tables_are_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table.csv")
    module = ready(CSVData(path=str(path), target="sick", client="where", test_fraction=0.25))
    assert (module.num_clients, module.num_classes) == (4, 2)
    assert isinstance(module.transform, Plain)
    seen = []
    for k in range(4):
        for split in SPLITS:
            data = module.client_data(k, split)
            number = data.inputs[:, 0].long()
            assert torch.equal(data.inputs[:, 1], data.inputs[:, 0] / 2)
            assert torch.equal(data.targets, (number % 3 > 0).long())  # "no" sorts before "yes"
            assert (number % 4 == k).all()
            seen += number.tolist()
    assert sorted(seen + module.resident.validation.inputs[:, 0].int().tolist()) == list(range(60))
    assert len(module.resident.all_test) == 15
    other = ready(CSVData(path=str(path), target="sick", client="where", test_fraction=0.25, seed=9))
    assert sorted(other.resident.all_test.inputs[:, 0].tolist()) == sorted(
        module.resident.all_test.inputs[:, 0].tolist()
    )


def test_tables_with_a_test_file_and_chosen_features(tmp_path: Path) -> None:
    train, test = write_table(tmp_path / "train.csv"), write_table(tmp_path / "test.csv", rows=20)
    module = ready(CSVData(path=str(train), test_path=str(test), target="sick", features=["half"], num_clients=3))
    assert module.client_data(0).inputs.shape[1:] == (1,)
    assert sorted(module.resident.all_test.inputs[:, 0].tolist()) == [i / 2 for i in range(20)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "sik"}, r"Expected columns \['sik'\] in .* but it has \['number', 'half', 'sick', 'where'\]"),
        ({"target": "sick"}, r"\['where'\] have other values"),
        ({"target": "sick", "client": "where", "path": "nowhere.csv"}, "Expected a CSV file in nowhere.csv"),
        ({"target": "sick", "client": "where", "test_fraction": 0.0}, "test_fraction in"),
        ({"target": "sick", "features": []}, r"at least one column in features, or null for all .* but got \[\]"),
        ({"target": "sick", "features": ["half", "sick"]}, "features without the target but got 'sick' in features"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = str(write_table(tmp_path / "table.csv"))
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(CSVData(**{"path": path, **arguments}))
    assert "\n" not in str(error.value)


def test_empty_cells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x,y\n1,0\n,1\n3,0\n4,1\n5,1\n")
    with pytest.raises(ConfigurationError, match=r"columns \['x'\] have empty cells"):
        ready(CSVData(path=str(tmp_path / "table.csv"), target="y", num_clients=1, test_fraction=0.2, features=["x"]))


def test_a_table_without_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("y,who\n1,a\n0,b\n1,a\n0,b\n")
    with pytest.raises(ConfigurationError, match=r"a feature column in .*table.csv but it has \['y', 'who'\]"):
        ready(CSVData(path=str(tmp_path / "table.csv"), target="y", client="who"))
