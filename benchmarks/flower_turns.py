"""Rounds of a run that wait for their turn: a callback for what ``flower_round.py`` times."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Turns(Callback):
    """Begins a round when its file ``go-N`` appears, and makes ``done-N`` once the round is over, checkpoint and all.

    Args:
        folder: of these files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the round before, and wait."""
        self._done(trainer.current_epoch - 1)
        while not (self.folder / f"go-{trainer.current_epoch}").exists():
            time.sleep(0.01)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last round."""
        self._done(trainer.current_epoch - 1)

    def _done(self, round: int) -> None:
        if round >= 0:
            (self.folder / f"done-{round}").touch()
