"""Checks of the settings that say how much a compressor sends."""

from __future__ import annotations

import math

from hetfl.errors import ConfigurationError


def require_density(density: float) -> None:
    """Refuse a share of entries that is not one.

    Raises:
        ConfigurationError: ``density`` is outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ConfigurationError(f"Expected density in (0, 1] but got {density}")


def require_one_amount(**amounts: float | None) -> None:
    """Refuse settings that do not say how much is sent, or say it twice.

    Args:
        amounts: ``threshold``, ``density``, and, where there is one, ``budget``; a budget's range is checked elsewhere.

    Raises:
        ConfigurationError: not exactly one of them is given, or a threshold or density is out of range.
    """
    if sum(amount is not None for amount in amounts.values()) != 1:
        *names, last = amounts
        given = ", ".join(f"{name}={amount}" for name, amount in amounts.items())
        raise ConfigurationError(f"Expected exactly one of {', '.join(names)} and {last} but got {given}")
    threshold, density = amounts["threshold"], amounts["density"]
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigurationError(f"Expected a finite threshold of at least 0 but got {threshold}")
    if density is not None:
        require_density(density)
