"""Warnings that name the clients of updates that are far larger than the others of their round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from lightning.pytorch.utilities import rank_zero_warn

FEWEST = 3
"""Least number of updates in a round: of two, it is unknown which one is too large."""
TIMES = 1e6
"""Least ratio of an update's largest entry to the median update's. Honest clients differ by a factor of about ten."""


def name_giants(round: int, peaks: Mapping[int, float], called: Callable[[int], str] = str) -> None:
    """Warn about clients whose update has an entry far larger than the largest entry of the round's median update.

    The update is accepted; :class:`hetfl.hooks.NormBound` bounds norms. But a damaged model later fails at all clients,
    and only this warning names the client that damaged it.

    Args:
        round: the round's number.
        peaks: by client, the largest absolute value in its update.
        called: returns the text that names a client.
    """
    if len(peaks) < FEWEST:
        return
    median = statistics.median(peaks.values())
    for client, peak in peaks.items():
        if median and peak > TIMES * median:
            rank_zero_warn(
                f"Round {round + 1}: update of client {called(client)} has an entry of {peak:g}, {peak / median:g} "
                "times the median update's largest one; it was taken"
            )
