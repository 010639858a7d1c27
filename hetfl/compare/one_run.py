"""The process of one run of a comparison: ``python -m hetfl.compare.one_run PARENT FOLDER VERB ...``."""

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
from hetfl.cli.starting import command_line, start

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


class RunInFolder(FederatedCLI):
    """Runs in a folder that is there already.

    Args:
        args: those of the CLI.
        folder: the run folder.
        kwargs: those of the CLI.
    """

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Check the settings, and have the run folder be the one given."""
        super().before_instantiate_classes()
        for each in run_folders(self.config[self.subcommand]):
            each.init_args.folder = str(self.folder)

    def after_test(self) -> None:
        """Draw the pictures, if asked: a test on its own is the end of a run that was stopped before it."""
        if self.config["test"].plots:
            self.draw(self.folder)


def die_with(parent: int) -> None:
    """End this process, by SIGKILL, when its parent is gone; where the system cannot, it goes on to its end.

    Args:
        parent: the parent's process number.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)


def main(args: Sequence[str]) -> None:
    """Run.

    Args:
        args: the parent's process number, the run folder, and the arguments of the CLI.
    """
    parent, folder, *rest = args
    die_with(int(parent))
    with command_line():
        start(rest, cli=partial(RunInFolder, folder=Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
