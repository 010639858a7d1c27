"""CSVData: reading tables, and refused tables."""

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


def test_a_test_file_and_chosen_features_are_read(tmp_path: Path) -> None:
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
        ({"target": "sick", "client": "where", "test_fraction": 1e-9}, r"some of .* samples \(test_fraction\) but"),
        ({"target": "sick", "features": []}, r"at least one column in features, or null for all .* but got \[\]"),
        ({"target": "sick", "features": ["half", "sick"]}, "features without the target but got 'sick' in features"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = str(write_table(tmp_path / "table.csv"))
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(CSVData(**{"path": path, **arguments}))
    assert "\n" not in str(error.value)


def test_a_table_without_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("y,who\n1,a\n0,b\n1,a\n0,b\n")
    with pytest.raises(ConfigurationError, match=r"a feature column in .*table.csv but it has \['y', 'who'\]"):
        ready(CSVData(path=str(tmp_path / "table.csv"), target="y", client="who"))


VALUES = {
    "empty": "",
    "text": "nan",
    "infinite": "inf",
    "negative": "-inf",
    "too large": "1e300",
    "far too large": "1e999",
}


@pytest.mark.parametrize("cell", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("held_out", [False, True])
def test_non_finite_values_are_refused_by_column_row_and_client(tmp_path: Path, cell: str, held_out: bool) -> None:
    path = write_table(tmp_path / "table.csv")
    write_table(tmp_path / "test.csv")
    spoilt = tmp_path / ("test.csv" if held_out else "table.csv")
    spoilt.write_text(spoilt.read_text().replace("\n5,2.5,", f"\n5,{cell},").replace("\n11,5.5,", f"\n11,{cell},"))
    arguments = {"path": str(path), "test_path": str(tmp_path / "test.csv"), "target": "sick", "client": "where"}
    message = (
        rf"{spoilt.name}, in features a finite float32, .* in column 'half', rows 6, 12 of clients 'clinic1', 'clin"
    )
    with pytest.raises(ConfigurationError, match=message) as error:
        ready(CSVData(**arguments))  # type: ignore[arg-type]
    assert "drop_unusable: true" in str(error.value)
    with pytest.warns(UserWarning, match=rf"2 of 60 rows of .*{spoilt.name} have unusable values and are left out"):
        module = ready(CSVData(**arguments, drop_unusable=True))  # type: ignore[arg-type]
    kept = torch.cat([module.client_data(k).inputs for k in range(4)] + [module.resident.validation.inputs])
    assert sorted(kept[:, 0].int().tolist()) == [i for i in range(60) if held_out or i not in (5, 11)]
    assert len(module.resident.all_test) == (58 if held_out else 60)


@pytest.mark.parametrize("column", ["sick", "where"])
def test_rows_without_a_class_or_a_client_are_refused_or_left_out(tmp_path: Path, column: str) -> None:
    path = tmp_path / "table.csv"
    lines = ["number,sick,where", *(f"{i},{'yes' if i % 3 else 'no'},{i % 4}" for i in range(60))]
    lines[9] = "8,,0" if column == "sick" else "8,yes,"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match=rf"in column '{column}', row 9 of client '"):
        ready(CSVData(path=str(path), target="sick", client="where"))
    with pytest.warns(UserWarning, match="1 of 60 rows of"):
        module = ready(CSVData(path=str(path), target="sick", client="where", drop_unusable=True))
    assert (module.num_classes, module.client_names) == (2, (0, 1, 2, 3))


def test_a_table_without_usable_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x,y\n,0\n,1\n,0\n,1\n")
    with pytest.raises(ConfigurationError, match=r"in column 'x', all rows$"):
        ready(CSVData(path=str(tmp_path / "table.csv"), target="y", num_clients=1, drop_unusable=True))


def test_labels_and_clients_may_be_named_na_or_none(tmp_path: Path) -> None:
    rows = [f"{i},{('NA', 'None', 'null', 'nan')[i % 4]},{('NA', 'None')[i % 2]}" for i in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y,who", *rows]))
    module = ready(CSVData(path=str(tmp_path / "table.csv"), target="y", client="who"))
    assert (module.num_classes, module.client_names) == (4, ("NA", "None"))
    data = module.client_data(0)
    assert torch.equal(data.targets, (data.inputs[:, 0].long() % 4 > 0) * 3)  # NA, None, nan, null: sorted


@pytest.mark.parametrize(
    ("written", "order"),
    [
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("1.5", "1", "2"), ("1", "1.5", "2")),
        (("10", "9", "x"), ("10", "9", "x")),
    ],
)
def test_labels_are_sorted_as_numbers_if_all_are_numbers(
    tmp_path: Path, written: tuple[str, ...], order: tuple[str, ...]
) -> None:
    (tmp_path / "table.csv").write_text("\n".join(["x,y", *(f"{i},{written[i % 3]}" for i in range(60))]))
    module = ready(CSVData(path=str(tmp_path / "table.csv"), target="y", num_clients=1))
    data = module.client_data(0)
    expected = [order.index(written[int(x) % 3]) for x in data.inputs[:, 0]]
    assert data.targets.tolist() == expected


def test_rows_with_more_cells_than_the_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{2 * i},{i % 2},{i % 2}\n" for i in range(20)))
    with pytest.raises(ConfigurationError, match="rows of 3 cells, as the header has, .* got longer ones"):
        CSVData(path=str(path), target="y", num_clients=2).load()


def test_tables_in_other_dialects_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = ["größe;krank", *(f"{i // 2},{5 * (i % 2)};{'ja' if i % 3 else 'nö'}" for i in range(60))]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    module = ready(
        CSVData(path=str(path), target="krank", separator=";", decimal=",", encoding="latin-1", num_clients=1)
    )
    numbers = torch.cat([data.inputs for data in (module.client_data(0), module.resident.all_test)])
    held_out = module.resident.validation.inputs
    assert sorted(torch.cat([numbers, held_out])[:, 0].tolist()) == [i / 2 for i in range(60)]
    with pytest.raises(ConfigurationError, match="Expected text in utf-8 in .* but got other bytes: set encoding"):
        ready(CSVData(path=str(path), target="krank", separator=";", decimal=",", num_clients=1))
    with pytest.raises(ConfigurationError, match=r"but it has \['größe;krank'\] \(set separator"):
        ready(CSVData(path=str(path), target="krank", encoding="latin-1", num_clients=1))


@pytest.mark.parametrize("arguments", [{"separator": ",", "decimal": ","}, {"separator": "::"}, {"decimal": ""}])
def test_impossible_dialects_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="two different characters as separator and decimal but got"):
        CSVData(path="table.csv", target="y", **arguments)  # type: ignore[arg-type]


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Expected a CSV file in .*unknown encoding: klingon"):
        ready(CSVData(path=str(write_table(tmp_path / "table.csv")), target="sick", encoding="klingon"))
