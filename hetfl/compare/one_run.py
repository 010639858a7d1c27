"""The process of one run of a comparison."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hetfl.cli.app import FederatedCLI
from hetfl.cli.checks import run_folders
from hetfl.cli.one_line import command_line
from hetfl.cli.starting import start
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.session.defaults import drop_previous

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl that sets the signal that a process gets when its parent ends."""


class RunInFolder(FederatedCLI):
    """A CLI that runs in a given run folder.

    Args:
        args: arguments of the CLI.
        folder: the run folder.
        kwargs: keyword arguments of the CLI.
    """

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Check the settings, and set the run folder."""
        super().before_instantiate_classes()
        for each in run_folders(self.config[self.subcommand]):
            each.init_args.folder = str(self.folder)

    def after_test(self) -> None:
        """Do what is missing at the end of a run that was stopped before its test."""
        if self.config["test"].plots:
            self.draw(self.folder)
        drop_previous([self.folder], SafeCheckpointIO())


def die_with(parent: int) -> None:
    """Let the system kill this process when its parent ends; systems other than Linux do not.

    Args:
        parent: process id of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent has ended already
        sys.exit(1)


def main(args: Sequence[str]) -> None:
    """Execute one run.

    Args:
        args: the process id of the parent, the run folder, and the arguments of the CLI.
    """
    parent, folder, *rest = args
    die_with(int(parent))
    with command_line():
        start(rest, cli=partial(RunInFolder, folder=Path(folder)))
