"""Predefined fleets."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.base import DAY, Fleet
from hetfl.fleet.device import Device
from hetfl.fleet.devices import Devices
from hetfl.seeding import generator

MBIT = 1.25e5
"""A megabit in bytes."""
PHONE = {"availability": 0.3, "failure_rate": 0.08}
KINDS = {
    "old phone": Device(3e9, 10 * MBIT, 2 * MBIT, **PHONE),
    "phone": Device(1e10, 20 * MBIT, 5 * MBIT, **PHONE),
    "new phone": Device(4e10, 60 * MBIT, 12 * MBIT, **PHONE),
    "gateway": Device(8e9, 50 * MBIT, 20 * MBIT, failure_rate=0.01),
    "edge box": Device(6e10, 100 * MBIT, 40 * MBIT, failure_rate=0.01),
    "edge GPU": Device(5e11, 200 * MBIT, 100 * MBIT, failure_rate=0.01),
    "workstation": Device(5e12, 1000 * MBIT, 1000 * MBIT, availability=0.9, failure_rate=0.005),
}
"""Kinds of devices, with speeds in training, not peak speeds."""
PRESETS: dict[str, dict[str, int]] = {
    "phones": {"old phone": 3, "phone": 5, "new phone": 2},
    "edge_boxes": {"gateway": 5, "edge box": 4, "edge GPU": 1},
    "mixed": {"old phone": 2, "phone": 3, "new phone": 2, "edge box": 2, "workstation": 1},
}
"""By preset and kind, the number of clients among ten."""


class Preset(Fleet):
    """A predefined fleet; the kind of each client's device is drawn from the seed.

    - ``phones``: 30 % old phones (3 GFLOP/s, 10 Mbit/s down, 2 up), 50 % phones (10 GFLOP/s, 20, 5) and 20 % new ones
      (40 GFLOP/s, 60, 12), reachable for 30 % of the time.
    - ``edge_boxes``: 50 % gateways (8 GFLOP/s, 50 Mbit/s down, 20 up), 40 % edge boxes (60 GFLOP/s, 100, 40) and 10 %
      with a small GPU (500 GFLOP/s, 200, 100), always reachable.
    - ``mixed``: 20 % old phones, 30 % phones, 20 % new phones, 20 % edge boxes, and 10 % workstations (5 TFLOP/s,
      1 Gbit/s both ways, reachable for 90 % of the time).

    Speeds, shares and availabilities are assumptions of this project: round numbers of a plausible order of magnitude,
    without a measurement. Phones take part only while they are idle, charged and on an unmetered network, and 6 to 10 %
    of them drop out of a round, according to Bonawitz et al., Towards federated learning at scale (MLSys 2019, arXiv
    1902.01046); 8 % of phones fail here. Use :class:`~hetfl.fleet.CsvFleet` for measured devices.

    Args:
        name: of the preset.
        reliable: all devices are always reachable and never fail; only their speeds differ.
        period: P; see :class:`Fleet`.
        variation: σ; see :class:`Fleet`.
        link_variation: σ'; see :class:`Fleet`.

    Raises:
        ConfigurationError: there is no such preset.
    """

    def __init__(
        self,
        name: Literal["phones", "edge_boxes", "mixed"],
        reliable: bool = False,
        period: float = DAY,
        variation: float = 0.0,
        link_variation: float = 0.0,
    ) -> None:
        super().__init__(period, variation, link_variation)
        if name not in PRESETS:
            raise ConfigurationError(f"Expected a preset among {list(PRESETS)} but got {name!r}")
        self.name, self.reliable = name, reliable

    def draw(self, num_clients: int, seed: int) -> Devices:  # noqa: D102
        kinds = {kind: KINDS[kind] for kind in PRESETS[self.name]}
        if self.reliable:
            kinds = {kind: replace(device, availability=1.0, failure_rate=0.0) for kind, device in kinds.items()}
        # The counts follow the shares as closely as whole numbers allow. The order is drawn, because data often depends
        # on the client's id.
        bounds = np.cumsum(list(PRESETS[self.name].values())) / sum(PRESETS[self.name].values())
        kind_N = np.searchsorted(bounds, (np.arange(num_clients) + 0.5) / num_clients)
        order = torch.randperm(num_clients, generator=generator(seed, "fleet", "kinds")).numpy()
        return Devices.of_kinds(kinds, kind_N[order])
