"""The progress of a run in the terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hetfl.display.formats import format_seconds
from hetfl.federation import FederatedCallback, FederatedModule
from hetfl.printable import printable
from hetfl.runs.headline import ACCURACY

BAR = 6
"""Width of the bar in a terminal; the line beside it takes up to 73 of 80 columns."""


def is_milestone(done: int, total: int | None) -> bool:
    """Return whether a plain line is due after ``done`` rounds: ten times per run, or every 10 rounds without a total.

    >>> [done for done in range(1, 26) if is_milestone(done, 25)]
    [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    """
    if total is None:
        return done % 10 == 0
    return done * 10 // total > (done - 1) * 10 // total


class RoundProgress(ProgressBar, FederatedCallback):
    """Shows the round, its finished clients, the elapsed and remaining time, and the latest validation headline.

    In a terminal this is one live line. If standard output is a file, a pipe or a dumb terminal, about ten plain lines
    are printed per run. The run folder is printed before the first round.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._headline = ACCURACY
        self._live: Progress | None = None
        self._first_round = 0
        self._rounds_done = 0
        self._last_line = 0
        self._clients = (0, 0)
        self._started = 0.0
        self._drawn = 0.0

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the live line."""
        console = Console() if self._live is None else self._live.console
        console.print(*args, markup=False, highlight=False, soft_wrap=True, **kwargs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the run folder."""
        folder = trainer.log_dir  # on every rank: Lightning broadcasts it
        if self._enabled and folder is not None and trainer.loggers:
            self.print(f"run folder: {printable(folder)}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what runs the clients, and start the clock and the live line."""
        module = cast(FederatedModule, pl_module)
        if self._enabled:
            self.print(f"clients: {module.executor.words}")
        self._headline = module.objective.headline
        self._first_round = self._rounds_done = self._last_line = trainer.current_epoch
        self._started = time.monotonic()
        if self._enabled and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            # No refresh thread: a lock that the thread holds during a fork would stay locked in the worker.
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR),
                console=Console(),  # rich's common one keeps what the terminal was at its first use
                auto_refresh=False,
                transient=True,
            )
            self._live.add_task("")
            self._live.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a round."""
        self._clients = (0, 0)
        self._draw(trainer, force=True)

    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        """Count a client."""
        self._clients = (done, total)
        self._draw(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a round, after its validation."""
        self._rounds_done = trainer.current_epoch + 1
        self._clients = (0, 0)
        self._draw(trainer, force=True)
        if is_milestone(self._rounds_done, _rounds(trainer)):
            self._print_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the live line."""
        self._stop()
        self._print_line(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the live line."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, trainer: Trainer, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or (now - self._drawn < 0.1 and not force):
            return
        self._drawn = now
        done, total = self._progress(trainer)
        self._live.update(self._live.task_ids[0], description=self._status(trainer), completed=done, total=total)
        self._live.refresh()

    def _print_line(self, trainer: Trainer) -> None:
        """Print the state after the latest round, unless it was printed already."""
        if self._enabled and self._live is None and self._rounds_done > self._last_line:
            self._last_line = self._rounds_done
            self.print(self._status(trainer))

    def _progress(self, trainer: Trainer) -> tuple[float, int | None]:
        """Return the rounds that this process has done, with the fraction of the current round, and their total."""
        rounds, (done, total) = _rounds(trainer), self._clients
        part = done / total if total else 0.0
        return self._rounds_done - self._first_round + part, None if rounds is None else rounds - self._first_round

    def _status(self, trainer: Trainer) -> str:
        rounds, (clients_done, clients), elapsed = _rounds(trainer), self._clients, time.monotonic() - self._started
        shown = self._rounds_done + 1 if self._live is not None else self._rounds_done
        parts = [f"round {shown if rounds is None else f'{min(shown, rounds)}/{rounds}'}"]
        if clients:
            parts.append(f"clients {clients_done}/{clients}")
        parts.append(format_seconds(elapsed))
        done, total = self._progress(trainer)
        if total is not None and 0 < done < total:
            parts.append(f"left {format_seconds(elapsed * (total - done) / done)}")
        column = self._headline.column("val")
        if column in trainer.callback_metrics:
            score = self._headline.shown(float(trainer.callback_metrics[column]))
            parts.append(f"val {self._headline.words} {score}")
        return "  ".join(parts)


def _rounds(trainer: Trainer) -> int | None:
    """Return the number of rounds of the run; None if it is unlimited."""
    return trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
