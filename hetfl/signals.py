"""Ctrl-C and SIGTERM in processes that watch others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def taking_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of reacting to them.

    Yields:
        The list of the numbers of received signals; it grows.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {each: signal.signal(each, receive) for each in SIGNALS}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
