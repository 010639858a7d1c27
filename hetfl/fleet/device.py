"""What a client's round would take on a real device."""

from __future__ import annotations

from dataclasses import dataclass

from hetfl.errors import ConfigurationError


@dataclass(frozen=True)
class Device:
    r"""A device model for the simulated clock.

    .. math:: t = \frac{\text{bytes down}}{\text{downlink}} + \frac{\text{FLOPs}}{\text{throughput}}
                  + \frac{\text{bytes up}}{\text{uplink}}

    Args:
        throughput: floating-point operations per second; the default is a small phone's, 10 GFLOP/s.
        downlink: bytes per second to the client; the default is 20 Mbit/s.
        uplink: bytes per second from the client; the default is 5 Mbit/s.

    Raises:
        ConfigurationError: one of them is not positive.
    """

    throughput: float = 1e10
    downlink: float = 2.5e6
    uplink: float = 6.25e5

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigurationError(f"Expected client_device.{name} above 0 but got {value}")

    def seconds(self, *, flops: float, down_bytes: int, up_bytes: int) -> float:
        """Return the simulated seconds of one client's round."""
        return down_bytes / self.downlink + flops / self.throughput + up_bytes / self.uplink
