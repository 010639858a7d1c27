"""The reference ledger: bytes, FLOPs and the simulated clock."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from tests.reference.rules import Devices


class Ledger:
    """Costs of rounds: phases are sequential; clients of a phase work in parallel, and each client sequentially."""

    def __init__(self, devices: Devices, deadline: float | None) -> None:
        self.devices, self.deadline = devices, deadline
        self.total: Counter[str] = Counter()
        self.now = 0.0
        self.begin_round()

    def begin_round(self) -> None:
        self.row: Counter[str] = Counter()
        self.began = self.now
        self.begin_phase("training")

    def begin_phase(self, purpose: str) -> None:
        self.phase, self.busy, self.purpose = self.now, defaultdict[int, float](float), purpose

    def reach(self, round: int, now: float) -> list[int]:
        """Return the clients that are in the fleet in this round and in the available part of their period."""
        devices = self.devices
        turn = (now / devices.period + devices.phase) % 1.0
        present = (devices.first_round <= round) & (round <= devices.last_round)
        return [int(k) for k in np.flatnonzero(present & (turn < devices.availability))]

    def wait(self, round: int) -> list[int]:
        """Advance the clock until the first client is reachable; return the clients that are reachable then."""
        if here := self.reach(round, self.now):
            return here
        devices = self.devices
        present = (devices.first_round <= round) & (round <= devices.last_round)
        until = (1 - (self.now / devices.period + devices.phase) % 1.0)[present] * devices.period
        self.now += float(until.min())
        self.row["waited"] += float(until.min())  # type: ignore[assignment]
        return self.reach(round, self.now + 1e-9 * devices.period)

    def seconds(self, client: int, down: float, flops: float, up: float) -> float:
        devices = self.devices
        amounts = (down, devices.downlink), (flops, devices.throughput), (up, devices.uplink)
        return float(sum(amount / rate[client] for amount, rate in amounts))

    def in_time(self, client: int, down: float, flops: float, up: float) -> bool:
        return self.deadline is None or self.seconds(client, down, flops, up) <= self.deadline

    def spend(self, client: int, down: float, flops: float, up: float) -> None:
        """Add work of a client after its earlier work in the phase."""
        self.busy[client] += self.seconds(client, down, flops, up)
        self._add(down, flops, up, self.busy[client])

    def drop(self, client: int, down: float, flops: float, up: float) -> None:
        """Add the work that a late client has done by the deadline."""
        assert self.deadline is not None
        left, done, devices = self.deadline, [], self.devices
        amounts = (down, devices.downlink), (flops, devices.throughput), (up, devices.uplink)
        for amount, rate in amounts:
            done.append(min(amount, left * rate[client]))
            left = max(0.0, left - amount / rate[client])
        self._add(int(done[0]), done[1], int(done[2]), self.deadline)
        self.count(dropped=1, lost=1)

    def _add(self, down: float, flops: float, up: float, seconds: float) -> None:
        self.count(**{"down": down, f"down_{self.purpose}": down}, flops=flops, up=up)
        self.now = max(self.now, self.phase + seconds)

    def count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.row[name] += amount  # type: ignore[assignment]
            self.total[name] += amount  # type: ignore[assignment]
