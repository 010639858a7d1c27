"""What can go wrong that is not a mistake in this package: settings, and single updates."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A setting, a net or a data set that cannot work: one line saying what was expected, what came, and where.

    The command line prints the message without a traceback and exits with status 2.
    """


class RefusedUpdate(ValueError):
    """An update that cannot be sent or taken (NaN, Inf, overflow): its client loses it, and the round goes on."""
