"""All input is limited in size and depth, and is refused in one line before parsing takes long."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hetfl import packing
from hetfl.analysis import load_run, load_snapshots
from hetfl.analysis.runs import read_config, read_metrics
from hetfl.data import CSVData
from hetfl.errors import ConfigurationError
from hetfl.export.card import read_card
from hetfl.fleet import CsvFleet
from hetfl.reading import DEEPEST, check_size, check_yaml, parse_json, parse_yaml, read_bytes
from hetfl.runs.metrics_file import MetricsFile
from hetfl.snapshots.files import Contents
from tests.demo_cases import DEMO, refused
from tests.reading_cases import ALIASES, DEEP, JSON, MANY, YAML

METRICS = "step,train/loss\n0,1\n"


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", YAML)
def test_yaml_text_is_measured_before_it_is_parsed(case: str) -> None:
    text, expected = YAML[case]
    with pytest.raises(ValueError, match=f"Expected {expected}") as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", YAML)
def test_oversized_configurations_are_refused_before_parsing(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = YAML[case]
    Path("run").mkdir()
    Path("run/config.yaml").write_text(text)
    assert f"{expected.partition(' characters')[0]}" in refused(capsys, ["fit", *DEMO, "-c", "run/config.yaml"])
    with pytest.raises(ConfigurationError, match=f"Expected {expected}.* in run/config.yaml but got"):
        read_config(Path("run/config.yaml"))


@pytest.mark.parametrize(
    "args",
    [
        ["resume", "run"],
        ["export", "run"],
        ["compare", "-r", "a=run/config.yaml", "--out=compared"],
        ["report", "run", "--out=compared"],
        ["data", "-c", "run/config.yaml"],
    ],
    ids=lambda args: args[0],
)
def test_no_subcommand_hangs_on_an_alias_bomb(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/config.yaml").write_text(ALIASES)
    Path("run/metrics.csv").write_text(METRICS)
    assert f"Expected {MANY} in run/config.yaml but got more" in refused(capsys, args)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.levels", "[" * 3000, DEEP),
        ("model.levels", "{" + ALIASES.replace("\n", ", ") + "}", MANY),
        ("model.net.hidden", "[8, '" + "[" * 3000 + "']", DEEP),
        ("trainer.max_epochs", "[" * 3000, DEEP),
        ("trainer.max_epochs", "9" * 5000, "Exceeds the limit"),
        ("trainer.callbacks", "[" * 3000, DEEP),
        ("snapshots.every", "{a: " * 3000, DEEP),
        ("data.partitioner", "[" * 3000, DEEP),
    ],
)
def test_oversized_command_line_values_are_refused_before_parsing(
    key: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, ["describe", *DEMO, f"--{key}={value}"])
    assert expected in error
    assert len(error) < 1100


def test_files_named_by_a_setting_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    Path("inner.yaml").write_text(ALIASES)
    assert MANY in refused(capsys, ["describe", *DEMO, "--data.partitioner=inner.yaml"])


def test_text_within_the_limits_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.reading.MOST_VALUES", 1000)
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parse_yaml(deep) == parse_json(deep)
    assert len(parse_yaml("[" + "1, " * 999 + "]")) == 999
    assert parse_yaml("a: &a [1, 2]\nb: {<<: {c: *a}, d: *a}") == {"a": [1, 2], "b": {"c": [1, 2], "d": [1, 2]}}
    assert parse_yaml("a: 'a text [ with marks & {'") == {"a": "a text [ with marks & {"}
    assert parse_yaml("'a" + "\n" * 3001 + "[ & {'") == "a" + "\n" * 3000 + "[ & {"
    with pytest.raises(ValueError, match="undefined alias"):
        parse_yaml("a: *b")
    with pytest.raises(ValueError, match=DEEP):
        check_yaml(f"[{deep}]")
    with pytest.raises(ValueError, match=DEEP):
        parse_json(f"[{deep}]")


@pytest.mark.parametrize("case", JSON)
def test_json_text_is_measured_before_it_is_parsed(case: str, tmp_path: Path) -> None:
    text, expected = JSON[case]
    with pytest.raises(ValueError, match=expected):
        parse_json(text)
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ConfigurationError, match=expected):
        read_card(tmp_path / "card.json")
    (tmp_path / "snapshots").mkdir()
    tensors = {"weights/w": torch.zeros(1)}
    safetensors.torch.save_file(tensors, tmp_path / "snapshots/round-00000.safetensors", {"hetfl": text})
    with pytest.raises(ConfigurationError, match=f"whole snapshot in .* but got a damaged file: .*{expected}"):
        load_snapshots(tmp_path)[0]
    with pytest.raises(ValueError, match="Expected packed values"):
        packing.unpack(safetensors.torch.save({}, {"tree": text}))


@pytest.mark.parametrize("change", [{"levels": ["a"]}, {"round": "0"}, {"weights": {}}, {"more": 1}, {"trained": [1]}])
def test_snapshot_metadata_of_wrong_types_is_refused(change: dict[str, object]) -> None:
    contents = json.loads(Contents(0, {"a": 1}, ["w"], ["w"], {"weights/w": 0}).to_json())["contents"]
    text = json.dumps({"contents": (changed := {**contents, **change}), "checksum": checksum(changed)})
    with pytest.raises(ValueError, match="not those of a snapshot"):
        Contents.from_json(text)
    with pytest.raises(ValueError, match="not those of a snapshot"):
        Contents.from_json("[]")
    del contents["cluster"]
    assert Contents.from_json(json.dumps({"contents": contents, "checksum": checksum(contents)})).cluster == 0


def checksum(contents: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(contents).encode())


TABLES: dict[str, Callable[[Path], object]] = {
    "metrics": read_metrics,
    "metrics of a run that goes on": MetricsFile,
    "clusters": lambda path: load_run(path.parent),
    "fleet": lambda path: CsvFleet(str(path)).draw(1, 0),
    "data": lambda path: CSVData(path=str(path), target="y", num_clients=1).load(),
}


@pytest.mark.parametrize("case", TABLES)
def test_oversized_tables_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("runs.metrics_file", "fleet.csv_fleet", "analysis.clusters", "analysis.runs"):
        monkeypatch.setattr(f"hetfl.{module}.LARGEST_TABLE", 50)
    monkeypatch.setattr("hetfl.data.csv_table.LARGEST_DATA", 50)
    (tmp_path / "metrics.csv").write_text(METRICS)
    path = tmp_path / ("clusters.csv" if case == "clusters" else "table.csv")
    path.write_text("step,client\n" + "0,0\n" * 20)
    with pytest.raises(ConfigurationError, match=f"Expected at most 50 bytes in {path} but got"):
        TABLES[case](path)


def test_an_unterminated_cell_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n0," + "1" * 200_000 + "\n")
    with pytest.raises(ConfigurationError, match=r"a table of rounds in .* line 2: field larger than field limit"):
        MetricsFile(path)


def test_an_endless_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at most 1,000 bytes in /dev/zero but got more"):
        read_bytes(Path("/dev/zero"), 1000)
    check_size(tmp_path / "absent", 0)
