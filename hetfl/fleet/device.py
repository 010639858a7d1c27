"""What a client's round would take on a real device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    r"""A device model for the simulated clock.

    .. math:: t = \frac{\text{bytes down}}{\text{downlink}} + \frac{\text{FLOPs}}{\text{throughput}}
                  + \frac{\text{bytes up}}{\text{uplink}}

    Args:
        throughput: floating-point operations per second; the default is a small phone's, 10 GFLOP/s.
        downlink: bytes per second to the client; the default is 20 Mbit/s.
        uplink: bytes per second from the client; the default is 5 Mbit/s.
    """

    throughput: float = 1e10
    downlink: float = 2.5e6
    uplink: float = 6.25e5

    def seconds(self, *, flops: float, down_bytes: int, up_bytes: int) -> float:
        """Return the simulated seconds of one client's round."""
        return down_bytes / self.downlink + flops / self.throughput + up_bytes / self.uplink
