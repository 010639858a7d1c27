"""Callbacks that belong to the command line: the saved configuration, the checkpoint, whether rounds are left."""

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
    """Saves the configuration when training starts: one that fails before leaves an old folder as it was."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save nothing yet: a checkpoint may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml``, whole or not at all."""
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
    """Return a configuration that starts a new run anywhere: without what resuming put in, data by absolute paths."""
    config = deepcopy(config)
    config.pop("ckpt_path", None)
    for part in ("data", "model"):
        if part in config:
            make_absolute(config[part])
    for folder in run_folders(config):
        folder.init_args.pop("folder", None)
    return config


ENDED = "hetfl_ended"
"""Where a checkpoint says that a run ended before its last round, by its settings: the number of rounds asked for."""


def has_ended(checkpoint: Mapping[str, Any], rounds: int | None) -> bool:
    """Return whether a run ended with a checkpoint.

    Args:
        checkpoint: its content.
        rounds: how many rounds are asked for; None or below 0: any number.
    """
    done = checkpoint.get("hetfl", {}).get("version", 0)
    return (rounds is not None and 0 <= rounds <= done) or (ENDED in checkpoint and checkpoint[ENDED] == rounds)


class RoundsLeft(Callback):
    """Refuses to go on from a checkpoint that has all rounds behind it; notes in one that a run ended early.

    Args:
        stop: knows whether a signal stops the run, which then has not ended.
    """

    def __init__(self, stop: StopAtRoundEnd) -> None:
        super().__init__()
        self._stop = stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the rounds done with those asked for.

        Raises:
            ConfigurationError: none is left.
        """
        done, rounds = checkpoint.get("hetfl", {}).get("version", 0), trainer.max_epochs
        if trainer.training and rounds is not None and 0 <= rounds <= done:
            raise ConfigurationError(f"Expected trainer.max_epochs above the {done} rounds done but got {rounds}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether early stopping, or a limit of steps, ends the run with this round."""
        rounds, steps = trainer.current_epoch + 1, trainer.global_step
        may_stop = rounds >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0)
        if self._stop.signal is None and ((trainer.should_stop and may_stop) or 0 <= trainer.max_steps <= steps):
            checkpoint[ENDED] = trainer.max_epochs


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt``, written after every round's validation, beside whatever else is kept."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back: paths from before a run folder was moved are none to delete."""
