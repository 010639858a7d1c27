"""Callbacks of every training: the last checkpoint, and a check of the rounds left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import LAST
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.runs.run_folder import RunFolder

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
    return Path(folder) / "checkpoints" / LAST


class LastCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/last.ckpt`` after the validation of a round, in addition to other checkpoints.

    A checkpoint has the states of all clients, so that it may take as long as a short round. Therefore a round writes
    it only if the time since the last one is at least ``(1 - share) / share`` times as long as the last one took. The
    first and the last round always write it, and so does a round that a signal ends. A run that dies repeats the rounds
    since its last checkpoint.

    Args:
        share: largest share of the time that checkpoints may take, above 0; 1: every round writes one.

    Raises:
        ConfigurationError: ``share`` is not in (0, 1].
    """

    def __init__(self, share: float = 0.05) -> None:
        if not 0 < share <= 1:
            raise ConfigurationError(f"Expected share in (0, 1] but got {share}")
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.share = share
        self._took = self._since = 0.0  # seconds of the last checkpoint, and when it was written

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, if it is time; the first rank decides for all."""
        begin = time.monotonic()
        due = _ends(trainer) or (begin - self._since) * self.share >= self._took * (1 - self.share)
        if trainer.strategy.broadcast(due):
            super().on_train_epoch_end(trainer, pl_module)
            self._since = time.monotonic()
            self._took = self._since - begin

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the rows of rounds before any checkpoint of the run, which is resumed only with them."""
        for logger in trainer.loggers:
            if isinstance(logger, RunFolder):
                logger.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint of the last round, unless it is there: a signal may come at the very end of a round."""
        super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: if the run folder was moved, the saved paths must not be deleted."""


def _ends(trainer: Trainer) -> bool:
    """Return whether the present round is the last one of the training."""
    rounds = -1 if trainer.max_epochs is None else trainer.max_epochs
    return (
        trainer.should_stop or 0 <= rounds <= trainer.current_epoch + 1 or 0 <= trainer.max_steps <= trainer.global_step
    )
