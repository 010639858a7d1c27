"""The clients' devices (speeds, reachability, failures) and the levels of clients."""

from hetfl.fleet.assignment import Dynamic, Fixed, LevelAssignment
from hetfl.fleet.base import Fleet
from hetfl.fleet.by_device import ByDevice
from hetfl.fleet.csv_fleet import CsvFleet
from hetfl.fleet.device import Device
from hetfl.fleet.devices import Devices, Work
from hetfl.fleet.draws import Between, Draw, LogNormal, LogUniform
from hetfl.fleet.preset import Preset
from hetfl.fleet.random_fleet import RandomFleet
from hetfl.fleet.same_device import SameDevice

__all__ = [
    "Between",
    "ByDevice",
    "CsvFleet",
    "Device",
    "Devices",
    "Draw",
    "Dynamic",
    "Fixed",
    "Fleet",
    "LevelAssignment",
    "LogNormal",
    "LogUniform",
    "Preset",
    "RandomFleet",
    "SameDevice",
    "Work",
]
