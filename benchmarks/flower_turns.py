"""A callback that lets ``flower_round.py`` start each round of a run."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Turns(Callback):
    """Starts round N when the file ``go-N`` appears, and makes ``done-N`` after the round and its checkpoint.

    Args:
        folder: folder of these files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the previous round as done, and wait for the file of this round."""
        self._done(trainer.current_epoch - 1)
        while not (self.folder / f"go-{trainer.current_epoch}").exists():
            time.sleep(0.01)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the last round as done."""
        self._done(trainer.current_epoch - 1)

    def _done(self, round: int) -> None:
        if round >= 0:
            (self.folder / f"done-{round}").touch()
