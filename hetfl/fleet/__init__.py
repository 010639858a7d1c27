"""The clients' devices (speeds, reachability, failures) and the levels of clients."""

from hetfl.fleet.assignment import Dynamic, Fixed, LevelAssignment
from hetfl.fleet.base import Fleet
from hetfl.fleet.by_device import ByDevice
from hetfl.fleet.csv_fleet import CsvFleet
from hetfl.fleet.device import Device
from hetfl.fleet.devices import Devices, Work
from hetfl.fleet.discounted_ucb import DiscountedUCB
from hetfl.fleet.draws import Between, Draw, LogNormal, LogUniform
from hetfl.fleet.equal_time import EqualTime
from hetfl.fleet.eucb import EUCB
from hetfl.fleet.growing import Growing, GrowingOnPlateau
from hetfl.fleet.learning import LearningAssignment
from hetfl.fleet.one_for_all import OneForAll
from hetfl.fleet.outlook import Outlook
from hetfl.fleet.preset import Preset
from hetfl.fleet.random_fleet import RandomFleet
from hetfl.fleet.same_device import SameDevice
from hetfl.fleet.self_pruned import SelfPruned

__all__ = [
    "EUCB",
    "Between",
    "ByDevice",
    "CsvFleet",
    "Device",
    "Devices",
    "DiscountedUCB",
    "Draw",
    "Dynamic",
    "EqualTime",
    "Fixed",
    "Fleet",
    "Growing",
    "GrowingOnPlateau",
    "LearningAssignment",
    "LevelAssignment",
    "LogNormal",
    "LogUniform",
    "OneForAll",
    "Outlook",
    "Preset",
    "RandomFleet",
    "SameDevice",
    "SelfPruned",
    "Work",
]
