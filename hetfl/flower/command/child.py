"""A command of Flower that ends with its parent, and when its main thread does: ``child.py PARENT COMMAND ...``.

``-m MODULE`` instead of a command is a module of hetfl, which is killed with its parent: it has nothing to end.

It runs as a file, not as a module: importing the hetfl package would take longer than importing Flower.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shutil
import signal
import sys
import traceback
from importlib.metadata import entry_points

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""


def main() -> None:
    """Run the command in this process."""
    parent, name, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if name == "-m" else signal.SIGTERM)
    if os.getppid() != int(parent):  # the parent ended before prctl
        sys.exit(1)
    try:
        if name == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            return
        (command,) = entry_points(group="console_scripts", name=name)
        sys.argv = [shutil.which(name) or name, *arguments]
        sys.exit(command.load()())
    except SystemExit:
        raise
    except BaseException:
        # If a restarted SuperLink does not know a SuperNode, two threads of the SuperNode interrupt it at once. The
        # second interrupt stops the shutdown that the first began, and the remaining threads would never end.
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
