"""Levels chosen by a bandit: discounted upper confidence bounds of what each level has earned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.credits import FORGOTTEN, Credits, Reward, Scale, bounds, check_settings
from hetfl.fleet.equal_time import equal_seconds
from hetfl.fleet.learning import LearningAssignment
from hetfl.fleet.numbers import FloatArray, IntArray
from hetfl.fleet.outlook import Outlook
from hetfl.value import Value

Forget = Literal["pulls", "rounds"]
"""When earlier rewards are discounted."""

Share = Literal["client", "device"]
"""Who shares what was learnt."""


class DiscountedUCB(LearningAssignment):
    r"""Gives each client the level with the largest upper confidence bound of its discounted mean reward.

    .. math:: \mathrm{level}_n = \arg\max_l \frac{Q_{n,l}}{W_{n,l} R_n}
        + b \sqrt{\frac{2 \ln \max(\sum_l W_{n,l}, 1)}{W_{n,l}}}

    At each pull of client n, its W and Q are multiplied by λ; then W of its level grows by 1, and Q by the reward
    (:func:`~hetfl.fleet.credits.rewards`). :math:`R_n` is the client's largest reward, faded by 0.99 per pull, so that
    means are in [0, 1]. A level with :math:`W < 10^{-3}` counts as untried. Untried levels come first, from the level
    at which the forecast equals the fastest client's time at ``reference`` (:class:`~hetfl.fleet.EqualTime`) outwards.
    Of equal bounds the larger level wins. A client that is away learns nothing and forgets nothing.

    The bounds are those of discounted UCB (Garivier and Moulines, ALT 2011) with ξ = 2; the reward is that of FedMP
    (Jiang et al., ICDE 2022), with a relative floor, and with values in [0, 1].

    Args:
        discount: λ, in (0, 1].
        coefficient: b.
        floor: smallest gap between a client's and the mean time, relative to the mean time.
        reward: ``gap`` divides a value by the gap, ``both`` by the gap and half of the client's time, ``late_only`` by
            the time above the mean and half of the client's time.
        scale: ``trend`` divides values by the largest one so far, faded by 0.95 per round; ``round`` by the largest one
            of the round.
        value: the value of an update; null: the decrease of the client's training loss (``LossDrop``).
        forget: ``pulls`` discounts at a client's own pulls, ``rounds`` in every round.
        share: ``client``: each client has its own table; ``device``: as prior, a level has one pull with the mean
            reward of all clients with the same kind of device, so a client begins with what the others know.
        reference: level at which the fastest client sets the time for the order of untried levels; null: the largest.
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
        forget: Forget = "pulls",
        share: Share = "client",
        reference: str | None = None,
        largest: LevelAssignment | None = None,
    ) -> None:
        super().__init__(reward, scale, floor, value, largest)
        check_settings("DiscountedUCB", discount, coefficient, floor)
        choice("forget of DiscountedUCB", forget, Forget)
        choice("share of DiscountedUCB", share, Share)
        self.discount, self.coefficient = discount, coefficient
        self.forget, self.share, self.reference = forget, share, reference

    def foresee(self, outlook: Outlook) -> None:
        """Set the order in which levels are tried.

        Raises:
            ConfigurationError: a level is unknown; two levels hold equally many entries; or the fleet has one kind of
                device of different speeds, and clients share by device.
        """
        super().foresee(outlook)
        devices = outlook.devices
        if self.share == "device" and len(devices.kinds) == 1 and np.ptp(devices.throughput) > 0:
            raise ConfigurationError(
                "Expected a fleet with kinds of devices for share: device of DiscountedUCB but got different speeds, "
                f"all of the kind {devices.kinds[0]!r}"
            )
        order_L, levels = outlook.order_L, np.arange(len(outlook.names))
        rank_L = np.argsort(order_L)
        start_N = rank_L[outlook.largest_within(equal_seconds(outlook, self.reference))]
        distance_NL = np.abs(levels[None, :] - start_N[:, None])  # in ranks, the largest level first
        self._probe_NL = order_L[np.argsort(distance_NL, axis=1, kind="stable")]

    def draw(self, round: int) -> IntArray:  # noqa: D102
        pulls_NL, earned_NL, top_N = self._known()
        allowed_NL, order_L = self.allowed_NL(round), self.outlook.order_L
        bounds_NL = np.where(allowed_NL, bounds(pulls_NL, earned_NL, top_N, self.coefficient), -np.inf)
        best_N = order_L[bounds_NL[:, order_L].argmax(axis=1)]
        untried_NL = np.take_along_axis(allowed_NL & (pulls_NL < FORGOTTEN), self._probe_NL, axis=1)
        first_N = np.take_along_axis(self._probe_NL, untried_NL.argmax(axis=1)[:, None], axis=1)[:, 0]
        drawn_N: IntArray = np.where(untried_NL.any(axis=1), first_N, best_N)
        return drawn_N

    def _known(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return W, Q and R with the prior of the clients' kinds of devices, if they share."""
        own = self._credits
        if self.share == "client":
            return own.pulls_NL, own.earned_NL, own.top_N
        kind_N = self.outlook.devices.kind
        shape = (len(self.outlook.devices.kinds), own.pulls_NL.shape[1])
        pulls_KL, earned_KL, top_K = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
        np.add.at(pulls_KL, kind_N, own.pulls_NL)
        np.add.at(earned_KL, kind_N, own.earned_NL)
        np.maximum.at(top_K, kind_N, own.top_N)
        known_KL = pulls_KL >= FORGOTTEN
        mean_KL = np.divide(earned_KL, pulls_KL, out=np.zeros(shape), where=known_KL)
        return own.pulls_NL + known_KL[kind_N], own.earned_NL + mean_KL[kind_N], top_K[kind_N]

    def begin_anew(self, num_clients: int, num_levels: int) -> None:  # noqa: D102
        self._credits = Credits(num_clients, num_levels)

    def book(self, clients_S: IntArray, positions_S: IntArray, rewards_S: FloatArray) -> None:  # noqa: D102
        self._credits.decay(slice(None) if self.forget == "rounds" else clients_S, self.discount)
        self._credits.add(clients_S, positions_S, rewards_S)

    def learnt(self) -> dict[str, Any]:  # noqa: D102
        return self._credits.state_dict()

    def load_learnt(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._credits.load_state_dict(dict(state))
