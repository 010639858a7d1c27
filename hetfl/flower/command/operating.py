"""The operator's side of a run on Flower: where its events and the nodes' standing go, and how a signal ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl.files import write_whole
from hetfl.flower.command.status import RUN
from hetfl.flower.events import EventFile, Reporter
from hetfl.flower.standing import StandingFile
from hetfl.runs import RunFolder
from hetfl.signals import SIGNALS

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""


class TellsFolder(Callback):
    """Tells the watching command the run folder when training begins, and keeps the nodes' standing there.

    Args:
        home: Flower's folder.
        standing: the nodes' standing.
    """

    def __init__(self, home: Path, standing: StandingFile) -> None:
        self._home, self._standing = home, standing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the path of the run folder."""
        folders = [logger.save_dir for logger in trainer.loggers if isinstance(logger, RunFolder)]
        folder = Path(folders[0]).absolute() if folders and folders[0] is not None else None
        self._standing.folder = folder
        self._standing.write(now=True)
        write_whole(self._home / RUN, str(folder or "").encode())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the standing of the last round."""
        self._standing.write(now=True)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process at a signal, unless the run is in training, which has handlers of its own."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {each: signal.signal(each, end) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def warnings_as_events(report: Reporter) -> Iterator[None]:
    """Report each warning as an event, without its place in the source."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        report("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let this process end when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def events_of(home: Path) -> EventFile:
    """Return the file of the events of the processes with a home folder."""
    return EventFile(home / "events")


@contextmanager
def working_in(folder: str) -> Iterator[None]:
    """Work in the folder where the user ran the command, as paths may be relative to it."""
    before = Path.cwd()
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        yield
    finally:
        os.chdir(before)
