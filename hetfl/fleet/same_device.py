"""The plainest fleet."""

from __future__ import annotations

import numpy as np

from hetfl.fleet.base import DAY, Fleet
from hetfl.fleet.device import Device
from hetfl.fleet.devices import Devices


class SameDevice(Fleet):
    """Every client has the same device.

    Args:
        device: what it can do; null: the default :class:`~hetfl.fleet.Device`, always there and never failing.
        period: see :class:`Fleet`, as the argument that follows.
        variation: how much throughput varies from round to round.
        link_variation: how much both links do.
    """

    def __init__(
        self, device: Device | None = None, period: float = DAY, variation: float = 0.0, link_variation: float = 0.0
    ) -> None:
        super().__init__(period, variation, link_variation)
        self.device = device or Device()

    def draw(self, num_clients: int, seed: int) -> Devices:  # noqa: D102
        return Devices.of_kinds({"device": self.device}, np.zeros(num_clients, np.int64))
