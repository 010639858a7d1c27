"""Whether errors have tracebacks: the option ``--debug`` and its environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG = "HETFL_DEBUG"
"""Environment variable; with any value except an empty text and 0, errors have tracebacks."""


def debugging() -> bool:
    """Return whether errors have tracebacks."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


@contextmanager
def debug_option(args: list[str]) -> Iterator[None]:
    """Remove ``--debug`` from arguments, and let this process and its children show tracebacks."""
    before = os.environ.get(DEBUG)
    if "--debug" in args:
        args.remove("--debug")
        os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DEBUG, None)
        else:
            os.environ[DEBUG] = before
