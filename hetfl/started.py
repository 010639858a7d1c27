"""The command that started a run, which its folder names, also if other processes run it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

COMMAND = "HETFL_COMMAND"
"""Environment variable with the command of a process that starts runs in other processes."""


def started_by() -> str:
    """Return the command that has started this process's runs, as text."""
    return os.environ.get(COMMAND) or command_line(sys.argv)


def command_line(arguments: list[str]) -> str:
    """Return a command as text, with the name of the program in place of its path.

    >>> command_line(["/usr/bin/hetfl", "fit", "-c", "my file.yaml"]), command_line(["-c", "fit"])
    ("hetfl fit -c 'my file.yaml'", 'hetfl fit')
    """
    program = Path(arguments[0]).name if arguments else ""
    name = program if program.endswith((".py", ".ipynb")) and program != "__main__.py" else "hetfl"
    return shlex.join([name, *arguments[1:]])
