"""Callbacks of the command line: the saved configuration, the last checkpoint, and a check of the rounds left."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from hetfl.cli.checks import run_folders
from hetfl.cli.paths import make_absolute
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.runs import RunFolder
from hetfl.runs.interrupt import StopAtRoundEnd


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration when training starts, so that an earlier failure does not change an old folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing, because a checkpoint may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml`` atomically."""
        folders = [logger for logger in trainer.loggers if isinstance(logger, RunFolder)]
        folder = trainer.log_dir  # on every rank: Lightning broadcasts it
        if folder is None or not trainer.loggers or not trainer.is_global_zero:
            return
        content = self.parser.dump(as_new_run(self.config), skip_unset=False).encode()
        if folders:
            folders[0].write_file(self.config_filename, content)
        else:
            write_whole(Path(folder) / self.config_filename, content)


def as_new_run(config: Namespace) -> Namespace:
    """Return a configuration that starts a new run in any directory: without resuming, and with absolute paths."""
    config = deepcopy(config)
    config.pop("ckpt_path", None)
    for part in ("data", "model"):
        if part in config:
            make_absolute(config[part])
    for folder in run_folders(config):
        folder.init_args.pop("folder", None)
    return config


ENDED = "hetfl_ended"
"""Key in the checkpoint of a run that its settings ended early; its value is the number of rounds in the settings."""


def has_ended(checkpoint: Mapping[str, Any], rounds: int | None) -> bool:
    """Return whether a checkpoint is the last one of a run.

    Args:
        checkpoint: contents of the checkpoint.
        rounds: total number of rounds in the settings; None or below 0: unlimited.
    """
    done = checkpoint.get("hetfl", {}).get("version", 0)
    return (rounds is not None and 0 <= rounds <= done) or (ENDED in checkpoint and checkpoint[ENDED] == rounds)


class RoundsLeft(Callback):
    """Refuses to resume from a checkpoint after the last round, and marks the checkpoint of a run that ends early.

    Args:
        stop: has the signal that stops the run; a run that a signal stops has not ended.
    """

    def __init__(self, stop: StopAtRoundEnd) -> None:
        super().__init__()
        self._stop = stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the rounds done with the total number of rounds.

        Raises:
            ConfigurationError: no rounds are left.
        """
        done, rounds = checkpoint.get("hetfl", {}).get("version", 0), trainer.max_epochs
        if trainer.training and rounds is not None and 0 <= rounds <= done:
            raise ConfigurationError(f"Expected trainer.max_epochs above the {done} rounds done but got {rounds}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint if early stopping or a limit of steps ends the run with this round."""
        rounds, steps = trainer.current_epoch + 1, trainer.global_step
        may_stop = rounds >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0)
        if self._stop.signal is None and ((trainer.should_stop and may_stop) or 0 <= trainer.max_steps <= steps):
            checkpoint[ENDED] = trainer.max_epochs


class LastCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/last.ckpt`` after the validation of every round, in addition to other checkpoints."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: if the run folder was moved, the saved paths must not be deleted."""
