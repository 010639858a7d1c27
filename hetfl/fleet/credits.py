"""What levels have earned: rewards of a round, and discounted sums of them with their upper confidence bounds."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.numbers import BoolArray, FloatArray, IntArray

Reward = Literal["gap", "both", "late_only"]
"""The time by which a value is divided; see :func:`rewards`."""
Scale = Literal["trend", "round"]
"""The number by which the values of a round are divided; see :func:`next_scale`."""
FORGOTTEN = 1e-3
"""An arm with a smaller discounted number of pulls counts as untried."""
FADING = 0.99
"""Factor of a client's largest reward at each of its pulls."""
TREND = 0.95
"""Factor of the scale of values in each round."""


def normalised(values_S: FloatArray, scale: float) -> FloatArray:
    r"""Return the values of a round's clients as shares of a scale, :math:`\hat v_k = \max(v_k, 0) / s`.

    A negative value would be worse the shorter the time by which it is divided; it counts as 0.

    Args:
        values_S: shape (S,); NaN: unknown, which counts as the mean of the known ones, or 1 without any.
        scale: s, at least the largest value; 0: no value was above 0, and all shares are 0.
    """
    known_S = ~np.isnan(values_S)
    if not known_S.any():
        return np.ones_like(values_S)
    shares_S = np.where(known_S, np.maximum(values_S, 0.0), 0.0) / (scale or 1.0)
    return np.where(known_S, shares_S, shares_S[known_S].mean())


def next_scale(scale: float, values_S: FloatArray, kind: Scale) -> float:
    r"""Return the scale of a round's values.

    .. math:: s_t = \max(0.95 \, s_{t-1}, \max_k v_k(t)) \;(\text{trend}), \qquad \max_k v_k(t) \;(\text{round})

    Losses fall by orders of magnitude during a run, so rewards of early rounds would outweigh later ones. The scale of
    a round alone removes what all its clients lose together by choosing small levels: in a fleet of equal devices,
    nothing then holds them back.

    Args:
        scale: of the round before; 0 in the first round.
        values_S: of the round's clients, shape (S,); NaN: unknown.
        kind: ``trend`` or ``round``.
    """
    largest = float(np.nanmax(values_S, initial=0.0))
    return max(TREND * scale, largest) if kind == "trend" else largest


def rewards(seconds_S: FloatArray, values_S: FloatArray, late_S: BoolArray, kind: Reward, floor: float) -> FloatArray:
    r"""Return the rewards of a round's clients, shape (S,): their values per second of a time; 0 for late clients.

    .. math:: r_k = \frac{\hat v_k}{g_k} \;(\text{gap}), \quad \frac{\hat v_k}{g_k + T_k / 2} \;(\text{both}), \quad
        \frac{\hat v_k}{\max(T_k - \bar T, 0) + T_k / 2} \;(\text{late\_only}), \qquad
        g_k = \max(|T_k - \bar T|, \varepsilon \bar T)

    The floor is relative to the mean time, so that of several clients with equal times all gain by being faster.

    Args:
        seconds_S: T_k, of late clients the deadline; NaN: unknown, and not counted in the mean.
        values_S: values in [0, 1].
        late_S: which clients were late.
        kind: the time by which values are divided.
        floor: ε.
    """
    known_S = ~np.isnan(seconds_S)
    mean = float(seconds_S[known_S].mean()) if known_S.any() else 0.0
    gap_S = np.maximum(np.abs(seconds_S - mean), floor * mean)
    if kind == "gap":
        time_S = gap_S
    elif kind == "both":
        time_S = gap_S + 0.5 * seconds_S
    else:
        time_S = np.maximum(seconds_S - mean, 0.0) + 0.5 * seconds_S
    return np.divide(values_S, time_S, out=np.zeros_like(values_S), where=~late_S)


def bounds(pulls_NA: FloatArray, earned_NA: FloatArray, top_N: FloatArray, coefficient: float) -> FloatArray:
    r"""Return the upper confidence bounds of arms, shape (N, A).

    .. math:: \frac{Q_{n,a}}{W_{n,a} R_n} + b \sqrt{\frac{2 \ln \max(\sum_a W_{n,a}, 1)}{W_{n,a}}}

    An arm with fewer than :data:`FORGOTTEN` pulls has an infinite bound.

    Args:
        pulls_NA: W, discounted numbers of pulls.
        earned_NA: Q, discounted sums of rewards.
        top_N: R, each client's largest reward; 0: no reward was above 0.
        coefficient: b.
    """
    log_N = np.log(np.maximum(pulls_NA.sum(axis=1), 1.0))
    tried_NA = pulls_NA >= FORGOTTEN
    pulls_NA = np.where(tried_NA, pulls_NA, 1.0)
    mean_NA = earned_NA / (pulls_NA * np.where(top_N > 0, top_N, 1.0)[:, None])
    return np.where(tried_NA, mean_NA + coefficient * np.sqrt(2 * log_N[:, None] / pulls_NA), np.inf)


class Credits:
    """Discounted sums of what levels have earned, for N clients and L levels.

    Attributes:
        pulls_NL: W, discounted number of pulls of each level by each client.
        earned_NL: Q, discounted sum of their rewards.
        top_N: the largest reward of each client, which fades by 1 % at each of its pulls.
    """

    def __init__(self, clients: int, levels: int) -> None:
        self.pulls_NL = np.zeros((clients, levels))
        self.earned_NL = np.zeros((clients, levels))
        self.top_N = np.zeros(clients)

    def decay(self, clients: IntArray | slice, discount: float) -> None:
        """Discount all earlier pulls of clients; the newest pull, added later, counts as 1."""
        self.pulls_NL[clients] *= discount
        self.earned_NL[clients] *= discount

    def add(self, clients_S: IntArray, positions_S: IntArray, rewards_S: FloatArray) -> None:
        """Add a pull of a level by each of some clients, each once."""
        self.pulls_NL[clients_S, positions_S] += 1.0
        self.earned_NL[clients_S, positions_S] += rewards_S
        self.top_N[clients_S] = np.maximum(FADING * self.top_N[clients_S], rewards_S)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as tensors."""
        return {name: torch.from_numpy(array.copy()) for name, array in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        for name in vars(self):
            setattr(self, name, state[name].numpy().copy())


def check_settings(name: str, discount: float, coefficient: float, floor: float) -> None:
    """Refuse settings of a bandit that are out of their ranges.

    Args:
        name: of the bandit.
        discount: factor of earlier pulls.
        coefficient: of the confidence bound.
        floor: smallest gap, relative to the mean time.

    Raises:
        ConfigurationError: names the setting.
    """
    if not 0 < discount <= 1:
        raise ConfigurationError(f"Expected discount in (0, 1] for {name} but got {discount}")
    if not 0 <= coefficient < np.inf:
        raise ConfigurationError(f"Expected coefficient of at least 0 for {name} but got {coefficient}")
    if not 0 < floor < np.inf:
        raise ConfigurationError(f"Expected floor above 0 for {name} but got {floor}")
