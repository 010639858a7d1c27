"""Fleets drawn at random."""

from __future__ import annotations

import numpy as np

from hetfl.fleet.base import DAY, Fleet
from hetfl.fleet.devices import Devices
from hetfl.fleet.draws import Draw
from hetfl.fleet.numbers import FOREVER, FloatArray, uniform


class RandomFleet(Fleet):
    """Every client's device is drawn from the seed, each number independently of the others.

    An argument is a number for all clients, or a distribution: :class:`~hetfl.fleet.LogNormal`,
    :class:`~hetfl.fleet.LogUniform` or :class:`~hetfl.fleet.Between`.

    Args:
        throughput: floating-point operations per second.
        downlink: bytes per second to the client.
        uplink: bytes per second from it.
        availability: share of the time in which it is reachable, from 0.001 to 1.
        failure_rate: probability of failing during a round.
        first_round: the round in which it joins, rounded down.
        stays: number of rounds until it leaves, rounded up; null: it never leaves.
        period: P; see :class:`Fleet`.
        variation: σ; see :class:`Fleet`.
        link_variation: σ'; see :class:`Fleet`.
    """

    def __init__(
        self,
        throughput: Draw | float = 1e10,
        downlink: Draw | float = 2.5e6,
        uplink: Draw | float = 6.25e5,
        availability: Draw | float = 1.0,
        failure_rate: Draw | float = 0.0,
        first_round: Draw | float = 0.0,
        stays: Draw | float | None = None,
        period: float = DAY,
        variation: float = 0.0,
        link_variation: float = 0.0,
    ) -> None:
        super().__init__(period, variation, link_variation)
        self.throughput, self.downlink, self.uplink = throughput, downlink, uplink
        self.availability, self.failure_rate = availability, failure_rate
        self.first_round, self.stays = first_round, stays

    def draw(self, num_clients: int, seed: int) -> Devices:  # noqa: D102
        def drawn(name: str, given: Draw | float) -> FloatArray:
            if isinstance(given, Draw):
                return given.at(uniform(num_clients, seed, "fleet", name))
            return np.full(num_clients, float(given))

        first = np.floor(drawn("first_round", self.first_round))
        last = np.full(num_clients, FOREVER)
        if self.stays is not None:
            last = (first + np.ceil(drawn("stays", self.stays)) - 1).astype(np.int64)
        names = ("throughput", "downlink", "uplink", "availability", "failure_rate")
        return Devices(
            kinds=("device",),
            kind=np.zeros(num_clients, np.int64),
            **{name: drawn(name, getattr(self, name)) for name in names},
            first_round=first.astype(np.int64),
            last_round=last,
        )
