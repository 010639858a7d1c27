"""What can go wrong that is not a mistake in this package: settings, and single updates."""

from __future__ import annotations

from hetfl.printable import printable

LONGEST_MESSAGE = 2000
"""Characters of a message at the most."""


class ConfigurationError(ValueError):
    """A setting, a net or a data set that cannot work: one line saying what was expected, what came, and where.

    The command line prints the message without a traceback and exits with status 2.

    Args:
        message: what is wrong; names of files, labels and classes in it may be anything (:func:`printable`).
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, LONGEST_MESSAGE))


class RefusedUpdate(ValueError):
    """An update that cannot be sent or taken (NaN, Inf, overflow): its client loses it, and the round goes on.

    Args:
        message: why; it may quote what a client sent.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, LONGEST_MESSAGE))
