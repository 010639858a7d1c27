"""A command of Flower that ends with its parent, and when its main thread does: ``child.py PARENT COMMAND ...``.

It is run as a file: the package's imports would take longer than Flower's.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import traceback
from importlib.metadata import entry_points

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


def main() -> None:
    """Become the command."""
    parent, name, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it was gone before
        sys.exit(1)
    (command,) = entry_points(group="console_scripts", name=name)
    sys.argv = [shutil.which(name) or name, *arguments]
    try:
        sys.exit(command.load()())
    except SystemExit:
        raise
    except BaseException:
        # A SuperNode that a new SuperLink does not know interrupts itself from two threads at once. The second breaks
        # off what the first began, and threads that are left would keep a process for ever that does nothing.
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
