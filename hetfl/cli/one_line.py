"""Errors of the command line in one line, and fewer messages."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hetfl.cli.debugging import debugging
from hetfl.cli.errors import condense
from hetfl.errors import LONGEST_MESSAGE, ConfigurationError
from hetfl.printable import printable
from hetfl.session.quiet import LOGGERS, ignore_warnings


@contextmanager
def command_line() -> Iterator[None]:
    """Suppress messages, make the current directory importable, and turn errors into one line.

    Raises:
        SystemExit: with status 2 for errors that the user can correct, with 1 for a full or read-only disk.
    """
    _quiet()
    if os.getcwd() not in sys.path:  # not "": jsonargparse changes the directory while it reads a file
        sys.path.append(os.getcwd())
    try:
        yield
    except _correctable() as error:
        if debugging():
            traceback.print_exception(error)
        _fail(str(error), status=2)
    except RuntimeError as error:
        if "Early stopping conditioned on metric" not in str(error):
            raise
        _fail(str(error), status=2)
    except OSError as error:  # a full or read-only disk is not a fault of the code
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", status=1)


def _correctable() -> tuple[type[Exception], ...]:
    """Return the errors that the user can correct; those of Lightning only if it is imported."""
    fabric = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (ConfigurationError, *([] if fabric is None else [fabric.MisconfigurationException]))


def _fail(message: str, status: int) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")  # with several processes most errors occur in all of them
    sys.stderr.write(f"hetfl: error: {'' if rank == '0' else f'rank {rank}: '}{condense(message)}\n")
    sys.exit(status)


class _Stderr(logging.Handler):
    """A handler that writes one line per record to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{printable(record.getMessage(), LONGEST_MESSAGE)}\n")


def _quiet() -> None:
    """Show the messages of hetfl; suppress general messages of Lightning and those that do not apply to hetfl."""
    logger = logging.getLogger("hetfl")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Stderr()]
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    ignore_warnings()
