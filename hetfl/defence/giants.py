"""Updates out of all proportion to the others of their round: their clients are named."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from lightning.pytorch.utilities import rank_zero_warn

FEWEST = 3
"""Updates of a round at the least: of two nobody can tell which one is out of proportion."""
TIMES = 1e6
"""How many times the median update's largest entry an update's is. Honest clients differ by a factor of ten or so."""


def name_giants(round: int, peaks: Mapping[int, float], called: Callable[[int], str] = str) -> None:
    """Warn of clients whose update has an entry far larger than the largest one of the round's median update.

    The update was taken: a large norm is the business of :class:`hetfl.hooks.NormBound`. But what it does to the model
    shows at all other clients, and only here it can be said whose it was.

    Args:
        round: the round's number.
        peaks: by client, the largest absolute value in its update.
        called: says what a client is called.
    """
    if len(peaks) < FEWEST:
        return
    median = statistics.median(peaks.values())
    for client, peak in peaks.items():
        if median and peak > TIMES * median:
            rank_zero_warn(
                f"Round {round}: update of client {called(client)} has an entry of {peak:g}, {peak / median:g} times "
                "the median update's largest one; it was taken"
            )
