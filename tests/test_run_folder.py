"""The run folder: one row per round for any order and number of calls, and no loss by a kill."""

from __future__ import annotations

import csv
import errno
import gc
import multiprocessing
import os
import tracemalloc
from multiprocessing.connection import Connection
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from hetfl.errors import ConfigurationError
from hetfl.runs import RunFolder
from hetfl.runs.metrics_file import MetricsFile, format_value, ordered


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def logger(tmp_path: Path) -> RunFolder:
    return RunFolder(root=str(tmp_path / "runs"))


def metrics_of(logger: RunFolder) -> Path:
    folder = logger.save_dir
    assert folder is not None
    return Path(folder) / "metrics.csv"


def test_log_calls_of_one_round_make_one_row(logger: RunFolder) -> None:
    logger.log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": 2.25}, step=0)
    logger.log_metrics({"val/accuracy": 0.75, "train/loss": 1.5}, step=1)
    logger.log_metrics({"val/accuracy": 0.8}, step=1)
    assert metrics_of(logger).read_text() == "step,train/loss,val/accuracy\n0,2.25,0.5\n1,1.5,0.8\n"


def test_the_file_is_complete_after_every_call(logger: RunFolder) -> None:
    for step in range(3):
        for name in ("lr", "train/loss"):
            logger.log_metrics({name: step + 0.5}, step=step)
            assert (
                rows_of(metrics_of(logger))[-1] | {"step": str(step), name: str(step + 0.5)}
                == rows_of(metrics_of(logger))[-1]
            )
    assert [row["step"] for row in rows_of(metrics_of(logger))] == ["0", "1", "2"]


def test_columns_are_in_contract_order_then_in_order_of_appearance() -> None:
    names = [
        "zeta",
        "residual/norm",
        "comm/up_bytes",
        "val/accuracy_by_level/b",
        "val/accuracy_by_level/a",
        "alpha",
        "val/accuracy",
        "lr",
    ]
    assert ordered(names) == [
        *(
            "val/accuracy",
            "val/accuracy_by_level/b",
            "val/accuracy_by_level/a",
            "lr",
            "comm/up_bytes",
            "residual/norm",
            "zeta",
            "alpha",
        )
    ]


def test_a_new_column_is_empty_in_earlier_rows(logger: RunFolder) -> None:
    logger.log_metrics({"lr": 0.1}, step=0)
    logger.log_metrics({"lr": 0.1, "train/loss": 3.0}, step=1)
    assert metrics_of(logger).read_text() == "step,train/loss,lr\n0,,0.1\n1,3,0.1\n"


def test_a_missing_value_is_an_empty_cell(logger: RunFolder) -> None:
    logger.log_metrics({"lr": 0.1, "threshold": 0.5}, step=0)
    logger.log_metrics({"lr": 0.2}, step=1)
    assert metrics_of(logger).read_text().splitlines()[-1] == "1,0.2,"


def test_values_of_an_earlier_round_are_merged_into_its_row(logger: RunFolder) -> None:
    for step in (0, 2, 3):
        logger.log_metrics({"lr": float(step)}, step=step)
    logger.log_metrics({"test/accuracy": 0.5}, step=2)
    logger.log_metrics({"lr": 1.0}, step=1)
    logger.log_metrics({"lr": 9.0}, step=3)
    assert [(row["step"], row["lr"], row["test/accuracy"]) for row in rows_of(metrics_of(logger))] == [
        *(("0", "0", ""), ("1", "1", ""), ("2", "2", "0.5"), ("3", "9", ""))
    ]


@given(st.floats(allow_nan=False))
def test_values_are_read_back_as_the_same_float64(value: float) -> None:
    assert float(format_value(value)) == value


@given(st.integers(0, 2**53))
def test_whole_numbers_are_written_as_integers(value: int) -> None:
    assert format_value(float(value)) == str(value)


@settings(max_examples=40)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 6),
            st.dictionaries(st.sampled_from(["lr", "train/loss", "x", "y"]), st.floats(allow_nan=False), min_size=1),
        ),
        min_size=1,
    ),
    kept=st.integers(0, 7),
)
def test_any_sequence_of_calls_equals_an_in_memory_table(
    calls: list[tuple[int, dict[str, float]]], kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "metrics.csv"
    table: dict[int, dict[str, float]] = {}
    file = MetricsFile(path)
    for count, (step, metrics) in enumerate(calls):
        file.add(step, metrics)
        table.setdefault(step, {}).update(metrics)
        if count % 3 == 2:
            file = MetricsFile(path)  # as another process continues
    file.truncate(kept)
    written = {int(row.pop("step")): {name: float(text) for name, text in row.items() if text} for row in rows_of(path)}
    assert written == {step: table[step] for step in table if step < kept}
    assert list(written) == sorted(written)


def test_a_continued_run_keeps_rows_before_the_checkpoint(logger: RunFolder) -> None:
    for step in range(5):
        logger.log_metrics({"lr": 0.1, "train/loss": float(step)}, step=step)
    uninterrupted = metrics_of(logger).read_bytes()

    continued = RunFolder(folder=logger.save_dir)
    continued.truncate(before_step=3)
    assert [row["step"] for row in rows_of(metrics_of(logger))] == ["0", "1", "2"]
    for step in (3, 4):
        continued.log_metrics({"lr": 0.1, "train/loss": float(step)}, step=step)
    assert metrics_of(continued).read_bytes() == uninterrupted


def test_truncate_before_anything_was_logged_does_nothing(logger: RunFolder) -> None:
    logger.truncate(before_step=0)
    assert not metrics_of(logger).exists()


def test_an_incomplete_last_line_is_ignored(logger: RunFolder) -> None:
    logger.log_metrics({"lr": 0.1}, step=0)
    with metrics_of(logger).open("a") as file:
        file.write("1,0.")
    continued = RunFolder(folder=logger.save_dir)
    continued.log_metrics({"lr": 0.2}, step=1)
    assert metrics_of(continued).read_text() == "step,lr\n0,0.1\n1,0.2\n"


@pytest.mark.parametrize("fault", ["os.fsync", "os.replace"])
def test_a_failing_rewrite_keeps_the_old_file(logger: RunFolder, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger.log_metrics({"lr": 0.1}, step=0)
    before = metrics_of(logger).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(fault, fail)
    for step in (1, 2):
        with pytest.warns(UserWarning, match=f"Row {step} of .*metrics.csv not written .* training goes on"):
            logger.log_metrics({"train/loss": 1.0}, step=step)
    assert metrics_of(logger).read_bytes() == before

    monkeypatch.undo()
    logger.log_metrics({"train/loss": 2.0}, step=3)
    assert metrics_of(logger).read_text() == "step,train/loss,lr\n0,,0.1\n1,1,\n2,1,\n3,2,\n"
    assert sorted(os.listdir(metrics_of(logger).parent)) == [".lock", "metrics.csv"]


def test_a_failing_append_does_not_damage_the_next_row(logger: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    logger.log_metrics({"lr": 0.1}, step=0)
    path = metrics_of(logger)

    def torn(file: Path, *_: object) -> None:
        with file.open("ab") as handle:
            handle.write(b"1,0.")
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.truncate", torn)
    with pytest.warns(UserWarning, match="Row 1 of"):
        logger.log_metrics({"lr": 0.2}, step=1)
    monkeypatch.undo()
    logger.log_metrics({"lr": 0.3}, step=2)
    assert path.read_text() == "step,lr\n0,0.1\n1,0.2\n2,0.3\n"


def test_a_short_write_leaves_the_row_as_it_was(logger: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    logger.log_metrics({"train/loss": 0.5, "lr": 0.1}, step=0)
    path, write = metrics_of(logger), os.pwrite
    for count in (3, 9):  # the disk is full within the old row, and after it
        with monkeypatch.context() as full:
            whole = [b"0,0.53125,0.125\n"]
            full.setattr(
                "os.pwrite", lambda file, data, at, n=count, w=whole: write(file, data[:n] if data in w else data, at)
            )
            with pytest.warns(UserWarning, match="Row 0 of .*No space left"):
                logger.log_metrics({"train/loss": 0.53125, "lr": 0.125}, step=0)
        assert path.read_text() == "step,train/loss,lr\n0,0.5,0.1\n"
    logger.log_metrics({}, step=0)
    logger.log_metrics({"lr": 0.2}, step=1)
    assert path.read_text() == "step,train/loss,lr\n0,0.53125,0.125\n1,,0.2\n"


def test_a_folder_on_a_disk_without_locks_is_used_with_a_warning(
    logger: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.warns(UserWarning, match=r"Run folder .* not locked \(No locks available\)"):
        logger.log_metrics({"lr": 0.1}, step=0)
    assert metrics_of(logger).is_file()


def opened(folder: str, saying: Connection) -> None:
    """Open a run folder, and send the error that this raises."""
    try:
        assert RunFolder(folder=folder).save_dir is not None
        saying.send("")
    except ConfigurationError as error:
        saying.send(str(error))


def another_process(folder: str) -> str:
    """Let a process open a run folder, and return its error."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    other = multiprocessing.get_context("fork").Process(target=opened, args=(folder, sender))
    other.start()
    error: str = receiver.recv()
    other.join()
    return error


def test_a_run_folder_is_locked_by_one_process(logger: RunFolder) -> None:
    logger.log_metrics({"lr": 0.1}, step=0)
    folder = str(metrics_of(logger).parent)
    assert "that no other process uses but got" in another_process(folder)
    RunFolder(folder=folder).log_metrics({"lr": 0.2}, step=1)  # a resume in the same process
    gc.collect()
    assert "that no other process uses but got" in another_process(folder), "the logger that is left has the lock"
    logger.log_metrics({"lr": 0.1}, step=2)


def test_the_last_logger_of_a_run_folder_unlocks_it(tmp_path: Path) -> None:
    loggers = [RunFolder(folder=str(tmp_path)) for _ in range(2)]
    for logger in loggers:
        logger.log_metrics({"lr": 0.1}, step=0)
    del logger, loggers
    gc.collect()
    assert another_process(str(tmp_path)) == ""


def test_missing_rounds_are_refused(logger: RunFolder) -> None:
    for step in range(4):
        logger.log_metrics({"lr": 0.1}, step=step)
    folder = str(metrics_of(logger).parent)
    RunFolder(folder=folder).truncate(4)
    with pytest.raises(ConfigurationError, match=r"Expected 5 rounds in .*metrics.csv.* but got 4: .*older checkpoint"):
        RunFolder(folder=folder).truncate(5)
    RunFolder(folder=folder).truncate(2)
    with pytest.raises(ConfigurationError, match="Expected 3 rounds .* but got 2"):
        RunFolder(folder=folder).truncate(3)
    logger.truncate(9)  # a new folder has no rows


def test_memory_does_not_grow_with_rounds(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    metrics = {f"val/accuracy_by_level/{level}": 0.123456789 for level in "abcdefghij"}
    for step in range(200):
        file.add(step, metrics)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for step in range(200, 2200):
            file.add(step, metrics)
        file.add(2200, {"x": 1.0})  # rewrites the file
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rows_of(file.path)) == 2201
    assert after - before < 50_000  # the rows take 300 kB


def test_new_runs_never_share_a_folder(tmp_path: Path) -> None:
    folders = [RunFolder(root=str(tmp_path), name="demo").save_dir for _ in range(5)]
    assert len(set(folders)) == 5
    assert all(folder is not None and Path(folder).parent == tmp_path / "demo" for folder in folders)


def test_the_folder_is_created_on_first_use(tmp_path: Path) -> None:
    logger = RunFolder(root=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert logger.save_dir == logger.save_dir
    assert metrics_of(logger).parent.is_dir()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunFolder(root=str(tmp_path / "runs"))
    logger.log_metrics({"lr": 0.1}, step=0)
    logger.truncate(before_step=0)
    assert logger.save_dir is None
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a\0b"])
def test_a_name_that_is_not_one_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected the run's name to be the name of one folder but got"):
        RunFolder(name=name)


def test_a_folder_to_continue_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected the folder of a run to continue but got .*absent"):
        _ = RunFolder(folder=str(tmp_path / "absent")).save_dir


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,loss\n0,1\n", "Expected the first column of .*metrics.csv to be 'step' but got 'epoch'"),
        ("\nstep,lr\n", "Expected the first column of .*metrics.csv to be 'step' but got ''"),
        ("step,lr\n0,1\n1\n", "Expected 2 cells, the first a round, in line 3 of .*metrics.csv but got '1'"),
        ("step,lr\nx,1\n", "Expected 2 cells, the first a round, in line 2 of .*metrics.csv but got 'x,1'"),
    ],
)
def test_a_foreign_metrics_file_is_refused_and_not_changed(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        RunFolder(folder=str(tmp_path)).log_metrics({"lr": 0.1}, step=0)
    assert (tmp_path / "metrics.csv").read_text() == text


@pytest.mark.parametrize("step", [None, -1])
def test_a_step_that_is_not_a_round_is_refused(logger: RunFolder, step: int | None) -> None:
    with pytest.raises(ValueError, match=f"Expected step to be a round, from 0, but got {step}"):
        logger.log_metrics({"lr": 0.1}, step=step)


class OneItem(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.ones(1)


class OneBatchAnEpoch(pl.LightningModule):
    """Logs as a federated module does: float64, the round as step, in training and in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("step", float(self.current_epoch), on_step=False, on_epoch=True)
        total = torch.tensor(123_456_789_123.0 + self.current_epoch, dtype=torch.float64)
        self.log("comm/up_bytes_total", total, on_step=False, on_epoch=True)
        loss: torch.Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("step", float(self.current_epoch))
        self.log("val/accuracy", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_writes_rows_and_checkpoints_into_the_folder(logger: RunFolder) -> None:
    loader = DataLoader(OneItem())
    trainer = pl.Trainer(
        max_epochs=3,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(OneBatchAnEpoch(), loader, loader)
    assert metrics_of(logger).read_text() == (
        "step,val/accuracy,comm/up_bytes_total\n0,0.5,123456789123\n1,0.5,123456789124\n2,0.5,123456789125\n"
    )
    assert trainer.log_dir == logger.save_dir
    assert list((metrics_of(logger).parent / "checkpoints").glob("*.ckpt"))


def test_declared_columns_are_written_at_the_start_and_may_stay_empty(tmp_path: Path) -> None:
    logger = RunFolder(str(tmp_path))
    logger.declare(["val/accuracy_by_level/", "threshold", "lr"])
    logger.declare(["lr"])
    logger.log_metrics({"lr": 0.1, "other": 2.0}, step=0)
    assert metrics_of(logger).read_text() == "step,lr,threshold,other\n0,0.1,,2\n"
