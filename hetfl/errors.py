"""The one exception for everything a user can put right."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A setting, a net or a data set that cannot work: one line saying what was expected, what came, and where.

    The command line prints the message without a traceback and exits with status 2.
    """
