"""Callbacks of every training: the last checkpoint, and a check of the rounds left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hetfl.errors import ConfigurationError
from hetfl.runs.interrupt import StopAtRoundEnd

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


def last_checkpoint(folder: str | Path) -> Path:
    """Return the path of the last checkpoint of a run."""
    return Path(folder) / "checkpoints" / "last.ckpt"


class LastCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/last.ckpt`` after the validation of every round, in addition to other checkpoints."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: if the run folder was moved, the saved paths must not be deleted."""
