"""Preset fleets: their kinds of devices and the devices' properties."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from hetfl.fleet import Preset
from hetfl.fleet.devices import Devices
from hetfl.piece import Facts


def devices_of(preset: Preset, clients: int) -> Devices:
    preset.setup(Facts([1] * clients))
    return preset.devices


KINDS = {  # GFLOP/s, Mbit/s down and up, availability, failure rate
    "old phone": (3, 10, 2, 0.3, 0.08),
    "phone": (10, 20, 5, 0.3, 0.08),
    "new phone": (40, 60, 12, 0.3, 0.08),
    "gateway": (8, 50, 20, 1, 0.01),
    "edge box": (60, 100, 40, 1, 0.01),
    "edge GPU": (500, 200, 100, 1, 0.01),
    "workstation": (5000, 1000, 1000, 0.9, 0.005),
}


@pytest.mark.parametrize(
    ("preset", "shares"),
    [
        ("phones", {"old phone": 3, "phone": 5, "new phone": 2}),
        ("edge_boxes", {"gateway": 5, "edge box": 4, "edge GPU": 1}),
        ("mixed", {"old phone": 2, "phone": 3, "new phone": 2, "edge box": 2, "workstation": 1}),
    ],
)
def test_a_preset_has_the_documented_devices(preset: Any, shares: dict[str, int]) -> None:
    devices = devices_of(Preset(preset), 10)
    expected = Counter({KINDS[kind]: number for kind, number in shares.items()})
    speeds = [devices.throughput / 1e9, devices.downlink * 8 / 1e6, devices.uplink * 8 / 1e6]
    columns = [each.tolist() for each in (*speeds, devices.availability, devices.failure_rate)]
    assert Counter(tuple(round(cell, 9) for cell in row) for row in zip(*columns, strict=True)) == expected


def test_a_preset_has_the_documented_shares_of_device_kinds() -> None:
    devices = devices_of(Preset("mixed"), 50)
    names = [devices.kinds[number] for number in devices.kind.tolist()]
    assert Counter(names) == {"old phone": 10, "phone": 15, "new phone": 10, "edge box": 10, "workstation": 5}
    assert names != sorted(names, key=devices.kinds.index)
    assert devices.throughput.tolist() == [1e9 * KINDS[name][0] for name in names]
    for reliable in (True, False):
        preset = Preset("phones", reliable=reliable)
        preset.setup(Facts([1] * 20))
        assert preset.always == reliable
