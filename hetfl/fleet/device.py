"""The device of one client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetfl.fleet.numbers import check_column


@dataclass(frozen=True)
class Device:
    """A simulated device.

    Args:
        throughput: floating-point operations per second; the default is a small phone's, 10 GFLOP/s.
        downlink: bytes per second to the client; the default is 20 Mbit/s.
        uplink: bytes per second from the client; the default is 5 Mbit/s.
        availability: share of the time in which the device is reachable, from 0.001 to 1.
        failure_rate: probability that it fails during a round in which it takes part.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    throughput: float = 1e10
    downlink: float = 2.5e6
    uplink: float = 6.25e5
    availability: float = 1.0
    failure_rate: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            check_column(name, np.array([value]), lambda _: "of a device")
