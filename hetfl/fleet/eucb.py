"""Levels chosen by a bandit over intervals of levels: E-UCB of FedMP (Jiang et al., ICDE 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.credits import Credits, Reward, Scale, bounds, check_settings
from hetfl.fleet.learning import LearningAssignment
from hetfl.fleet.numbers import BoolArray, FloatArray, IntArray, uniform
from hetfl.value import Value


class EUCB(LearningAssignment):
    r"""Divides the levels of each client into intervals, and draws a level from the interval with the largest bound.

    At first, all levels, ordered by size, are one interval. In a round, a client draws a level uniformly from the
    interval P with the largest bound. At the end of the round, it splits this interval at the drawn level.

    .. math:: P_n = \arg\max_P \frac{\sum_{l \in P} Q_{n,l}}{R_n \sum_{l \in P} W_{n,l}}
        + b \sqrt{\frac{2 \ln \max(\sum_l W_{n,l}, 1)}{\sum_{l \in P} W_{n,l}}}

    W, Q, :math:`R_n` and the rewards are those of :class:`~hetfl.fleet.DiscountedUCB`. An interval without pulls comes
    first; of equal bounds, that of the larger levels.

    As in the paper: discounted bounds of intervals, the draw within the interval, the split at the draw, and the reward
    by the gap to the mean time. Not as in the paper: its intervals are of ratios in [0, 1), these are of a list of
    levels, so an interval of one level is not split; only clients whose level is booked split an interval. The paper's
    discount, coefficient and smallest interval are not known here.

    Args:
        discount: λ, in (0, 1].
        coefficient: b.
        floor: smallest gap between a client's and the mean time, relative to the mean time.
        reward: see :class:`~hetfl.fleet.DiscountedUCB`.
        scale: see :class:`~hetfl.fleet.DiscountedUCB`.
        value: the value of an update; null: the decrease of the client's training loss (``LossDrop``).
        largest: assignment of the largest level that each client's device can hold; null: all levels.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    def __init__(
        self,
        discount: float = 0.98,
        coefficient: float = 0.1,
        floor: float = 0.05,
        reward: Reward = "gap",
        scale: Scale = "trend",
        value: Value | None = None,
        largest: LevelAssignment | None = None,
    ) -> None:
        super().__init__(reward, scale, floor, value, largest)
        check_settings("EUCB", discount, coefficient, floor)
        self.discount, self.coefficient = discount, coefficient

    def draw(self, round: int) -> IntArray:  # noqa: D102
        order_L = self.outlook.order_L
        interval_NL = self._intervals()
        able_NL = self.allowed_NL(round)[:, order_L]
        pulls_NI = _sums(self._credits.pulls_NL[:, order_L], interval_NL)
        earned_NI = _sums(self._credits.earned_NL[:, order_L], interval_NL)
        able_NI = _sums(able_NL.astype(np.float64), interval_NL)
        bounds_NI = bounds(pulls_NI, earned_NI, self._credits.top_N, self.coefficient)
        chosen_N = np.where(able_NI > 0, bounds_NI, -np.inf).argmax(axis=1)
        within_NL = able_NL & (interval_NL == chosen_N[:, None])
        count_N = within_NL.sum(axis=1)
        place_N = np.floor(uniform(len(count_N), self.seed, "eucb", round) * count_N).astype(np.int64)
        rank_N = (np.cumsum(within_NL, axis=1) > place_N[:, None]).argmax(axis=1)
        drawn_N: IntArray = order_L[rank_N]
        return drawn_N

    def _intervals(self) -> IntArray:
        """Return the number of the interval of each level, the largest level first, shape (N, L)."""
        numbers: IntArray = np.cumsum(self._begins_NL, axis=1) - 1
        return numbers

    def begin_anew(self, num_clients: int, num_levels: int) -> None:  # noqa: D102
        self._credits = Credits(num_clients, num_levels)
        self._begins_NL: BoolArray = np.zeros((num_clients, num_levels), np.bool_)  # whether an interval begins here
        self._begins_NL[:, :1] = True

    def book(self, clients_S: IntArray, positions_S: IntArray, rewards_S: FloatArray) -> None:  # noqa: D102
        self._credits.decay(clients_S, self.discount)
        self._credits.add(clients_S, positions_S, rewards_S)
        ranks_S = np.argsort(self.outlook.order_L)[positions_S]
        for client, rank in zip(clients_S.tolist(), ranks_S.tolist(), strict=True):
            begins_L = self._begins_NL[client]
            split = rank + 1 if begins_L[rank] else rank
            if split < len(begins_L):
                begins_L[split] = True

    def learnt(self) -> dict[str, Any]:  # noqa: D102
        return {**self._credits.state_dict(), "begins": torch.from_numpy(self._begins_NL.copy())}

    def load_learnt(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._credits.load_state_dict({name: each for name, each in state.items() if name != "begins"})
        self._begins_NL = state["begins"].numpy().copy()


def _sums(values_NL: FloatArray, interval_NL: IntArray) -> FloatArray:
    """Return the sums of values over intervals, shape (N, L); intervals that do not exist have 0."""
    sums_NI = np.zeros(values_NL.shape)
    np.add.at(sums_NI, (np.arange(len(values_NL))[:, None], interval_NL), values_NL)
    return sums_NI
