"""What a round costs: bytes, FLOPs and simulated seconds, added up from what was really sent and done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from hetfl.fleet import Device


@dataclass
class Costs:
    """Costs of one round, or of all rounds so far.

    Attributes:
        up_bytes: bytes of encoded messages from clients.
        down_bytes: bytes of messages to clients.
        dense_bytes: bytes that the same updates would take as dense float32 values.
        entries: entries that the updates could have carried.
        sent: entries that they did carry.
        flops: floating-point operations of all clients.
        seconds: simulated seconds: of the slowest client for a round.
        refused: updates that the server did not take.
    """

    up_bytes: int = 0
    down_bytes: int = 0
    dense_bytes: int = 0
    entries: int = 0
    sent: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    refused: int = 0


@dataclass
class Ledger:
    """Adds up costs over the clients of a round and over rounds.

    Args:
        device: what every client's device can do, for the simulated clock.
    """

    device: Device
    round: Costs = field(default_factory=Costs)
    total: Costs = field(default_factory=Costs)
    phase_start: float = 0.0

    def begin_round(self) -> None:
        """Forget the last round; totals stay."""
        self.round = Costs()
        self.phase_start = 0.0

    def begin_phase(self) -> None:
        """Begin what clients do side by side, once all that was asked of them before is done."""
        self.phase_start = self.round.seconds

    def charge(self, *, down_bytes: int, up_bytes: int, flops: float) -> None:
        """Add one client's traffic and work in the present phase.

        Args:
            down_bytes: bytes to the client.
            up_bytes: bytes from it.
            flops: its floating-point operations.
        """
        seconds = self.phase_start + self.device.seconds(flops=flops, down_bytes=down_bytes, up_bytes=up_bytes)
        longer = max(0.0, seconds - self.round.seconds)
        for costs in (self.round, self.total):
            costs.up_bytes += up_bytes
            costs.down_bytes += down_bytes
            costs.flops += flops
            costs.seconds += longer

    def sent(self, *, entries: int, sent: int, dense_bytes: int) -> None:
        """Note how many of an update's entries travelled."""
        for costs in (self.round, self.total):
            costs.entries += entries
            costs.sent += sent
            costs.dense_bytes += dense_bytes

    def refuse(self) -> None:
        """Note an update that the server did not take."""
        self.round.refused += 1
        self.total.refused += 1

    def columns(self) -> dict[str, float]:
        """Return the ledger's columns of ``metrics.csv``."""
        now, total = self.round, self.total
        return {
            "comm/up_bytes": now.up_bytes,
            "comm/down_bytes": now.down_bytes,
            "comm/up_bytes_total": total.up_bytes,
            "comm/down_bytes_total": total.down_bytes,
            "comm/up_density": now.sent / now.entries if now.entries else 0.0,
            "comm/up_ratio": now.dense_bytes / now.up_bytes if now.up_bytes else 0.0,
            "comm/refused": now.refused,
            "compute/flops_total": total.flops,
            "sim/round_seconds": now.seconds,
            "sim/seconds_total": total.seconds,
        }

    def state_dict(self) -> dict[str, float]:
        """Return the totals as plain numbers."""
        return asdict(self.total)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back the totals."""
        self.total = Costs(**state)  # type: ignore[arg-type]
