"""``hetfl data``: its numbers against plain loops, the table, the figure, and refused arguments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle
from rich.console import Console

from hetfl.analysis.data_plots import plot_labels, write_labels
from hetfl.cli import main
from hetfl.data import IID, Digits, Dirichlet, LabelShards, RotationGroups, TensorData, client_table, divergence
from hetfl.data.mix import evenly_spaced
from hetfl.display.data_table import show_data
from hetfl.errors import ConfigurationError

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs/data/digits.yaml")
PARTITIONS = sorted((ROOT / "configs/partition").glob("*.yaml"))


def digits(**arguments: Any) -> Digits:
    module = Digits(**{"num_clients": 12, "partitioner": Dirichlet(0.5), **arguments})
    module.setup()
    return module


def printed(module: Digits | TensorData) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_data(module, client_table(module), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- numbers ---


@given(counts=st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(any), min_size=1, max_size=12))
def test_divergence_is_half_the_sum_of_absolute_differences(counts: list[list[int]]) -> None:
    total = sum(map(sum, counts))
    for client, client_counts in enumerate(counts):
        slow = 0.0
        for c in range(4):
            slow += abs(client_counts[c] / sum(client_counts) - sum(row[c] for row in counts) / total) / 2
        assert float(divergence(torch.tensor(counts))[client]) == pytest.approx(slow, abs=1e-12)


def test_divergence_of_equal_and_of_disjoint_clients() -> None:
    assert divergence(torch.tensor([[3, 6], [1, 2]])).abs().max() < 1e-12
    assert divergence(torch.eye(8).long() * 7).tolist() == pytest.approx([7 / 8] * 8)


def test_the_table_equals_the_counts_of_the_clients() -> None:
    module = digits(client_transform=RotationGroups([0, 90]))
    table = client_table(module)
    for client, row in enumerate(table.to_dict("records")):
        targets = module.client_data(client).targets.tolist()
        assert row["client"] == client
        assert row["train_samples"] == len(targets)
        assert row["test_samples"] == len(module.client_data(client, "test"))
        assert row["labels"] == len(set(targets))
        assert [row[f"class_{c}"] for c in range(10)] == [targets.count(c) for c in range(10)]
        assert row["change"] == ("0°", "90°")[RotationGroups([0, 90]).groups(12)[client]]


@given(total=st.integers(1, 5000), most=st.integers(2, 60))
def test_even_positions_are_evenly_spaced(total: int, most: int) -> None:
    chosen = evenly_spaced(total, most)
    assert len(chosen) == min(total, most)
    assert (chosen[0], chosen[-1]) == (0, total - 1)
    steps = np.diff(chosen)
    assert len(steps) == 0 or 1 <= steps.min() >= steps.max() - 1


# --- the terminal ---


def test_every_client_and_a_summary_are_printed() -> None:
    module = digits(partitioner=LabelShards(2), num_clients=30)
    text = printed(module)
    for client in range(30):
        assert f"\n      {client:>2} " in text
    sizes = sorted(module.sizes)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["smallest"][1] == str(sizes[0])
    assert float(rows["median"][1]) == float(np.median(sizes))
    assert rows["largest"][1] == str(sizes[-1])
    assert f"not assigned: {module.unassigned} of 1,293 training samples" in text
    assert "change" not in text
    assert "\x1b" not in text


def test_long_names_of_clients_truncate_no_number() -> None:
    module = digits()
    table = client_table(module).assign(train_samples=12345)
    table.insert(1, "id", [f"{'name' * 30}{client}" for client in range(12)])
    console = Console(file=io.StringIO(), width=80)
    show_data(module, table, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("12,345") == 12 + 3
    assert all(name in text for name in table["id"])
    assert "…" not in text


def many(num_clients: int) -> TensorData:
    targets = torch.arange(4 * num_clients) % 100
    module = TensorData(
        train_inputs=torch.zeros(4 * num_clients, 1), train_targets=targets, test_inputs=torch.zeros(100, 1),
        test_targets=torch.arange(100), num_clients=num_clients, partitioner=IID(), val_fraction=0.0,
    )  # fmt: skip
    module.setup()
    return module


def test_a_thousand_clients_are_abbreviated_with_a_note() -> None:
    module = many(1000)
    text = printed(module)
    assert "Clients (50 of 1,000, evenly spaced)" in text
    assert text.count("\n") < 65
    figure = plot_labels(client_table(module))
    assert "50 of 1,000 clients at even distances" in figure.texts[0].get_text()
    left, right = figure.axes
    assert len(left.get_yticks()) == len(right.patches) == 50
    assert [int(label.get_text()) for label in left.get_yticklabels()] == evenly_spaced(1000, 50)


# --- the picture ---


def test_dots_and_bars_show_the_counts() -> None:
    table = client_table(digits())
    left, right = plot_labels(table).axes
    (dots,) = left.collections
    assert isinstance(dots, PathCollection)
    offsets, sizes = np.asarray(dots.get_offsets()), dots.get_sizes()
    counts = table[[f"class_{c}" for c in range(10)]].to_numpy()
    assert len(offsets) == (counts > 0).sum()
    for (label, client), size in zip(offsets.astype(int), sizes, strict=True):
        assert size / sizes.max() == pytest.approx(counts[client, label] / counts.max())
    assert [bar.get_width() for bar in right.patches if isinstance(bar, Rectangle)] == table["train_samples"].tolist()
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] > left.get_ylim()[1]  # client 0 is at the top


def test_the_legend_lists_the_groups_of_inputs() -> None:
    figure = plot_labels(client_table(digits(client_transform=RotationGroups([0, 90, 180]))))
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0°", "90°", "180°"]


def test_files_are_written_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    table = client_table(digits())
    files = write_labels(table, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["labels.png", "labels.svg", "clients.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(files[2]), table)
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_labels(table, tmp_path / "new" / "folder")] == before


def test_an_existing_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    for folder in (tmp_path / "there", tmp_path / "there" / "below"):
        with pytest.raises(ConfigurationError, match="Expected a folder to write into .--out. but got .*there"):
            write_labels(client_table(digits()), folder)


# --- the command ---


BY_DEFAULT = ("two_labels", "rotation_groups")
"""One partition of labels and one of inputs."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in BY_DEFAULT)) for path in PARTITIONS],
)
def test_every_partition_file_stacks_on_digits(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem.startswith("flower"):
        pytest.importorskip("flwr_datasets")
    main(["data", "-c", DIGITS, "-c", str(path), "--out", str(tmp_path)])
    assert "training samples on 50 clients" in capsys.readouterr().out
    assert (tmp_path / "labels.svg").is_file()


def test_a_configuration_of_fit_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["data", "-c", str(ROOT / "configs/demo.yaml"), "--data.num_clients=20"])
    assert "written           data_report/labels.png data_report/labels.svg" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data_report"]
    assert len(pd.read_csv("data_report/clients.csv")) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: data"),
        (["-c", DIGITS, "--data.num_clients=2000"], "Expected 1 client to 1293"),
        (
            ["-c", DIGITS, "--data.client_transform=hetfl.data.FeatureNoise", "--data.client_transform.sigma=-1"],
            "sigma",
        ),
        (["-c", DIGITS, "--out", DIGITS], "digits.yaml: a file is there"),
    ],
)
def test_wrong_values_are_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("hetfl: error: ")
    assert error.count("\n") == 1
    assert message in error
