"""A process of Flower that dies with its parent: ``python -m hetfl.cli.flower_child PARENT COMMAND ...``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


def main() -> None:
    """Become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":  # it lasts through the exec below
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it was gone before
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
