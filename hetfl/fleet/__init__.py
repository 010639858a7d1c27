"""Who takes part: the clients' levels and devices."""

from hetfl.fleet.assignment import Dynamic, Fixed, LevelAssignment
from hetfl.fleet.device import Device

__all__ = ["Device", "Dynamic", "Fixed", "LevelAssignment"]
