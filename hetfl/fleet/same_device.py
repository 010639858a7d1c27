"""The fleet of equal devices."""

from __future__ import annotations

import numpy as np

from hetfl.fleet.base import DAY, Fleet
from hetfl.fleet.device import Device
from hetfl.fleet.devices import Devices


class SameDevice(Fleet):
    """Every client has the same device.

    Args:
        device: the device; null: the default :class:`~hetfl.fleet.Device`, always reachable and never failing.
        period: P; see :class:`Fleet`.
        variation: σ; see :class:`Fleet`.
        link_variation: σ'; see :class:`Fleet`.
    """

    def __init__(
        self, device: Device | None = None, period: float = DAY, variation: float = 0.0, link_variation: float = 0.0
    ) -> None:
        super().__init__(period, variation, link_variation)
        self.device = device or Device()

    def draw(self, num_clients: int, seed: int) -> Devices:  # noqa: D102
        return Devices.of_kinds({"device": self.device}, np.zeros(num_clients, np.int64))
