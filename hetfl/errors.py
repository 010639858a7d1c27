"""Errors that are no bugs of this package: invalid settings, and unusable updates."""

from __future__ import annotations

from hetfl.printable import printable

LONGEST_MESSAGE = 2000
"""Largest number of characters in a message."""


class ConfigurationError(ValueError):
    """An invalid setting, net or data set. The message is one line: what was expected, what was given, and where.

    The command line prints the message without a traceback and exits with status 2.

    Args:
        message: the message; names of files, labels and classes in it may be any text (:func:`printable`).
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, LONGEST_MESSAGE))


class RefusedUpdate(ValueError):
    """An update that cannot be sent or accepted (NaN, Inf, overflow). It is lost, and the round goes on.

    Args:
        message: why; it may quote what a client sent.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, LONGEST_MESSAGE))


class UnusualUpdate(RefusedUpdate):
    """An update that is refused since it is unlike the others before it; a round of such updates does not end a run."""
