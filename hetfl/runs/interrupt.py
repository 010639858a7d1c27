"""Ctrl-C and SIGTERM: the first ends the run at the end of the round, with its checkpoint; the second at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAtRoundEnd(Callback):
    """Lets a round that is under way end before an interrupted training stops.

    Attributes:
        signal: the number of the signal that came; None: none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                sys.exit(128 + number)
            self.signal = number
            if trainer.world_size == 1:  # else all ranks must stop at the same place
                trainer.should_stop = True
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            sys.stderr.write(f"hetfl: stopping after this round; once more {name} stops at once\n")

        self._before = {each: signal.signal(each, stop) for each in SIGNALS}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have all ranks of a distributed trainer stop if one of them is to, here or at the end of the next round."""
        self._agree(trainer)
        trainer.should_stop |= self.signal is not None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        self._agree(trainer)
        self._restore()

    def _agree(self, trainer: Trainer) -> None:
        """Have all ranks know of a signal that came to one of them."""
        if trainer.world_size > 1:
            own = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(own, reduce_op="max")) or None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}


@contextmanager
def taking_signals() -> Iterator[list[int]]:
    """Take Ctrl-C and SIGTERM as wishes to be passed on.

    Yields:
        Their numbers, as they come.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {each: signal.signal(each, receive) for each in SIGNALS}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
