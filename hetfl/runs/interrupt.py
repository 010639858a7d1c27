"""Ctrl-C and SIGTERM: the first signal stops the run after the round and its checkpoint, the second at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl.signals import SIGNALS


class StopAtRoundEnd(Callback):
    """Stops an interrupted training at the end of the current round.

    Attributes:
        signal: number of the signal that was received; None: none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._least: tuple[int | None, int | None] | None = None  # the trainer's min_epochs and min_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                sys.exit(128 + number)
            self.signal = number
            if trainer.world_size == 1:  # several ranks must stop in the same round; on_train_epoch_end agrees on it
                _stop(trainer)
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            sys.stderr.write(f"hetfl: stopping after this round; once more {name} stops at once\n")

        self.signal, self._least = None, (trainer.min_epochs, trainer.min_steps)
        if threading.current_thread() is threading.main_thread():  # Python has signal handlers nowhere else
            self._before = {each: signal.signal(each, stop) for each in SIGNALS}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop all ranks of a distributed trainer if one of them received a signal."""
        self._agree(trainer)
        if self.signal is not None:
            _stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers, and the trainer's least numbers of rounds and steps."""
        self._agree(trainer)
        self._restore(trainer)

    def _agree(self, trainer: Trainer) -> None:
        """Tell all ranks of a signal that one of them received."""
        if trainer.world_size > 1:
            received = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(received, reduce_op="max")) or None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers, and the trainer's least numbers of rounds and steps."""
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self._least is not None:
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = self._least
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}


def _stop(trainer: Trainer) -> None:
    """Let a trainer stop at the end of the round, also before its ``min_epochs`` and ``min_steps``."""
    trainer.should_stop = True
    trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
