"""A file that does not fit on the disk is named in one line, and its previous version stays."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from hetfl.analysis.data_plots import write_labels
from hetfl.analysis.pictures import save_figure
from hetfl.cli.one_line import command_line
from hetfl.cli.reporting import main as report
from hetfl.files import to_disk
from hetfl.runs import RunFolder
from hetfl.session.drawing import print_figures


@contextmanager
def no_space(bytes: int = 1000) -> Iterator[None]:
    """Let writes fail that would make a file longer than a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder of two rounds."""
    (tmp_path / "run").mkdir()
    logger = RunFolder(folder=str(tmp_path / "run"))
    for step in range(2):
        values = {
            "val/accuracy": 0.5,
            "val/accuracy/a": 0.5,
            "comm/up_bytes": 10.0,
            "comm/up_ratio": 2.0,
            "comm/up_bytes_total": 10.0 + step,
        }
        logger.log_metrics(values, step=step)
    return tmp_path / "run"


def test_a_plot_that_cannot_be_written_is_named_and_the_old_plot_stays(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    with no_space(), pytest.raises(OSError, match=r"a\.png") as error:
        save_figure(Figure(), tmp_path, "a")
    assert error.value.filename == str(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_a_plot_that_cannot_be_written_at_the_end_of_fit_is_named_and_the_run_stays(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_space():
        assert print_figures(run) == []
    line = capsys.readouterr().out.removeprefix("pictures").strip()
    assert line == f"none: {run}/plots/accuracy_over_rounds.png not written (File too large)"
    assert not any((run / "plots").iterdir())
    assert print_figures(run)[-1].name == "accuracy_over_bytes.png"


@contextmanager
def refusing(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let writes of files with one name fail as on a full disk."""

    def full(file: BufferedWriter) -> None:
        if Path(file.name).name == f"{name}.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(file)

    with monkeypatch.context() as broken:
        broken.setattr("hetfl.files.to_disk", full)
        yield


@pytest.mark.parametrize("name", ["accuracy_over_rounds.svg", "summary.csv", "report.md", "report.html"])
def test_a_report_file_that_cannot_be_written_is_named_in_one_line(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(name, monkeypatch), pytest.raises(SystemExit) as stop, command_line():
        report([str(run), "--out", str(run / "report")])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hetfl: error: {run}/report/")
    assert line.endswith(f"{name}: No space left on device")


@pytest.mark.parametrize("name", ["labels.png", "labels.svg", "clients.csv"])
def test_a_data_file_that_cannot_be_written_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = pd.DataFrame({"client": [0, 1], "train_samples": [3, 4], "class_0": [1, 2], "class_1": [2, 2]})
    with refusing(name, monkeypatch), pytest.raises(OSError, match="No space left") as error:
        write_labels(clients, tmp_path)
    assert error.value.filename == str(tmp_path / name)
