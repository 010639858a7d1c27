"""Levels with which all clients are predicted to finish at the same time."""

from __future__ import annotations

import math

from hetfl.errors import ConfigurationError
from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.fleet.outlook import Outlook


class EqualTime(LevelAssignment):
    r"""Gives every client, for the whole run, the largest level whose predicted round takes at most T seconds.

    .. math:: \mathrm{level}_k = \arg\max_l \{ |\theta_l| : t_k(l) \le T \}, \qquad T = \min_k t_k(\mathrm{reference})

    with :math:`|\theta_l|` the entries of a level and :math:`t_k(l)` the forecast of a client's round at its usual
    speed (:class:`~hetfl.accounting.Forecast`). It learns nothing. A client for which every level takes longer than T
    gets its fastest level. With clients of very different sizes, T is that of the smallest client: then give T as
    ``deadline``.

    Args:
        reference: the level at which the fastest client sets T; null: the largest level.
        deadline: T, simulated seconds, in place of ``reference``.

    Raises:
        ConfigurationError: both are given, or the deadline is not positive and finite.
    """

    def __init__(self, reference: str | None = None, deadline: float | None = None) -> None:
        if reference is not None and deadline is not None:
            raise ConfigurationError(
                f"Expected a reference or a deadline for EqualTime but got both, {reference!r} and {deadline}"
            )
        if deadline is not None and not 0 < deadline < math.inf:
            raise ConfigurationError(f"Expected deadline, in seconds, above 0 for EqualTime but got {deadline}")
        self.reference, self.deadline = reference, deadline

    def foresee(self, outlook: Outlook) -> None:
        """Set the level of every client.

        Raises:
            ConfigurationError: there is no such level as the reference.
        """
        super().foresee(outlook)
        seconds = equal_seconds(outlook, self.reference) if self.deadline is None else self.deadline
        self._fixed_N = outlook.largest_within(seconds)

    def draw(self, round: int) -> IntArray:  # noqa: D102
        return self._fixed_N


def equal_seconds(outlook: Outlook, reference: str | None) -> float:
    """Return the predicted seconds of the fastest client at a level.

    Args:
        outlook: what is known before the run.
        reference: the level; None: the largest.

    Raises:
        ConfigurationError: there is no such level.
    """
    position = int(outlook.order_L[0]) if reference is None else outlook.position(reference, "reference")
    return float(outlook.seconds_LN[position].min())
