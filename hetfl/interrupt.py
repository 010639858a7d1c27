"""Ctrl-C: the first ends the run at the end of the round, with its checkpoint; the second ends it at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAtRoundEnd(Callback):
    """Lets a round that is under way end before an interrupted training stops."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = trainer.should_stop = True
            signal.signal(signal.SIGINT, self._before)
            sys.stderr.write("hetfl: stopping after this round; once more Ctrl-C stops at once\n")

        self._before = signal.signal(signal.SIGINT, stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
