"""Levels chosen by the speed of the clients' devices."""

from __future__ import annotations

import math

import numpy as np

from hetfl.errors import ConfigurationError
from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.numbers import FloatArray, IntArray


class ByDevice(LevelAssignment):
    r"""Gives every client, for the whole run, the slowest level whose round takes at most T seconds.

    .. math:: \mathrm{level}_k = \arg\max_l \{ t_k(l) : t_k(l) \le T \}, \qquad
        t_k(l) = \frac{W_l}{\text{downlink}_k} + \frac{E \, n_k F_l}{\text{throughput}_k} + \frac{W_l}{\text{uplink}_k}

    with :math:`W_l` the bytes of the sub-model and :math:`F_l` the FLOPs of training it with one sample, E local
    epochs and :math:`n_k` samples of client k. A client for which every level takes longer than T gets the fastest
    level. The formula assumes dense updates; with compression rounds are shorter.

    Args:
        seconds: T, simulated seconds; the module's ``deadline`` is a natural choice.

    Raises:
        ConfigurationError: T is not positive and finite.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise ConfigurationError(f"Expected seconds above 0 for ByDevice but got {seconds}")
        self.seconds = seconds

    def meet(self, seconds_LN: FloatArray) -> None:  # noqa: D102
        longest = np.where(seconds_LN <= self.seconds, seconds_LN, -math.inf)
        fits = np.isfinite(longest).any(axis=0)
        self._fixed_N: IntArray = np.where(fits, longest.argmax(axis=0), seconds_LN.argmin(axis=0))

    def draw(self, round: int) -> IntArray:  # noqa: D102
        return self._fixed_N
