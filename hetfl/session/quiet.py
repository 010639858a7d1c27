"""Fewer messages of Lightning: those that do not apply to hetfl, and advertisements."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("lightning.pytorch", "lightning.fabric")
IGNORED = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*litlogger.*",
    ".*litmodels.*",
    ".*treespec, LeafSpec.*",
)
"""Warnings that do not apply to a training whose rounds are one item each."""


def ignore_warnings() -> None:
    """Ignore :data:`IGNORED` until the present filters are restored."""
    for message in IGNORED:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quiet() -> Iterator[None]:
    """Show only warnings of Lightning, without those that do not apply."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        ignore_warnings()
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
