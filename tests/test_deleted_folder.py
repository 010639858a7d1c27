"""A run folder that is deleted during its run is recreated with the known files, and a warning says so."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from hetfl.cli import main
from hetfl.errors import ConfigurationError
from hetfl.runs.run_folder import LOCK, RunFolder
from tests.demo_cases import DEMO, FEW, UNTESTED


def folder_of(logger: RunFolder) -> Path:
    assert logger.save_dir is not None
    return Path(logger.save_dir)


def test_complete_files_are_restored_and_lost_rows_are_warned_about(tmp_path: Path) -> None:
    logger = RunFolder(str(tmp_path))
    folder = folder_of(logger)
    logger.write_file("config.yaml", b"seed: 0\n")
    logger.write_table("levels", ["level"], [["a"]])
    logger.log_metrics({"lr": 0.1}, step=0)
    logger.log_metrics({"lr": 0.2}, step=1)
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=f"{folder} was deleted .* made again with config.yaml, levels.csv; rows"):
        logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.log_metrics({"train/loss": 2.0}, step=2)  # one warning only
    assert (folder / "config.yaml").read_bytes() == b"seed: 0\n"
    assert (folder / "levels.csv").read_text() == "level\na\n"
    assert (folder / "metrics.csv").read_text() == "step,train/loss,lr\n1,1,0.2\n2,2,\n"


def test_a_folder_recreated_by_another_writer_is_detected(tmp_path: Path) -> None:
    logger = RunFolder(str(tmp_path))
    folder = folder_of(logger)
    logger.write_file("config.yaml", b"seed: 0\n")
    shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)  # as the checkpoint writer does
    with pytest.warns(UserWarning, match="was deleted"):
        logger.log_metrics({"lr": 0.1}, step=0)
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml", LOCK, "metrics.csv"}


def test_rows_wait_while_a_deleted_folder_cannot_be_made(tmp_path: Path) -> None:
    logger = RunFolder(str(tmp_path))
    folder = folder_of(logger)
    logger.log_metrics({"lr": 0.1}, step=0)
    shutil.rmtree(folder.parent)
    folder.parent.touch()  # no folder can be made below a file
    with pytest.warns(UserWarning, match=f"Row 1 of {folder}/metrics.csv not written"):
        logger.log_metrics({"lr": 0.2}, step=1)
    with pytest.warns(UserWarning, match="Rows not flushed"):
        logger.flush()  # before a checkpoint
    with pytest.warns(UserWarning, match="values.csv not written"):
        logger.append_rows("values", ("round", "value"), [(1, 0.5)])
    folder.parent.unlink()
    with pytest.warns(UserWarning, match="was deleted"):
        logger.log_metrics({"lr": 0.3}, step=2)
    assert (folder / "metrics.csv").read_text() == "step,lr\n1,0.2\n2,0.3\n"


class Deleting(Callback):
    """Deletes the run folder at the start of the second round."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            shutil.rmtree(str(trainer.log_dir))


def test_a_run_whose_folder_was_deleted_can_be_resumed(tmp_path: Path) -> None:
    small = [*FEW, "--trainer.max_epochs=3", "--model.net.hidden=[8,8]", f"--trainer.logger.root={tmp_path}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", *DEMO, *small, *UNTESTED, f"--trainer.callbacks={__name__}.Deleting"])
    assert sum("was deleted" in str(warning.message) for warning in caught) == 1
    (folder,) = (tmp_path / "demo").iterdir()
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [1, 2]
    assert (folder / "levels.csv").is_file()
    main(["resume", str(folder), "--trainer.max_epochs=4"])
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [1, 2, 3]


def test_another_process_in_the_recreated_folder_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunFolder(str(tmp_path))
    shutil.rmtree(folder_of(logger))

    def held(*_: object) -> None:
        raise BlockingIOError(11, "held")

    monkeypatch.setattr("fcntl.lockf", held)
    with pytest.raises(ConfigurationError, match="to which another process writes"):
        logger.log_metrics({"lr": 0.1}, step=0)
