"""The clients' devices as arrays, and what they have to do in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hetfl.errors import ConfigurationError
from hetfl.fleet.device import Device
from hetfl.fleet.numbers import FOREVER, RULES, FloatArray, IntArray, check_column


@dataclass(frozen=True)
class Work:
    """What clients have to do in a round, in this order; numbers, or arrays of one entry per client.

    Attributes:
        down_bytes: bytes that they are sent.
        flops: floating-point operations.
        up_bytes: bytes that they send.
        density: share of the operations that is with entries that they hold, of all of their nets' entries.
    """

    down_bytes: int | IntArray
    flops: float | FloatArray
    up_bytes: float | IntArray | FloatArray = 0
    density: float = 1.0


@dataclass(frozen=True)
class Devices:
    """What the devices of N clients can do: an entry per client in every array; see :class:`~hetfl.fleet.Device`.

    Attributes:
        kinds: names of the kinds of devices.
        kind: which of them each client has.
        throughput: floating-point operations per second.
        downlink: bytes per second to the client.
        uplink: bytes per second from it.
        availability: share of the time in which it can be reached.
        failure_rate: probability of failing in a round.
        first_round: the round in which the client joins.
        last_round: the last round that it is there for.

    Raises:
        ConfigurationError: a number is out of its range, or a client leaves before it joins.
    """

    kinds: tuple[str, ...]
    kind: IntArray
    throughput: FloatArray
    downlink: FloatArray
    uplink: FloatArray
    availability: FloatArray
    failure_rate: FloatArray
    first_round: IntArray
    last_round: IntArray

    def __post_init__(self) -> None:
        """Check every number."""
        for name in RULES:
            check_column(name, getattr(self, name), lambda client: f"of client {client}")
        check_stay(self.first_round, self.last_round, lambda client: f"of client {client}")

    @staticmethod
    def of_kinds(kinds: Mapping[str, Device], kind_N: IntArray) -> Devices:
        """Return devices of a few kinds, all of one kind alike; all are there from the first round to the last.

        Args:
            kinds: a device of each kind, by name.
            kind_N: which kind each client has, shape (N,).
        """
        names = ("throughput", "downlink", "uplink", "availability", "failure_rate")
        arrays = {name: np.array([getattr(device, name) for device in kinds.values()])[kind_N] for name in names}
        first, last = np.zeros(len(kind_N), np.int64), np.full(len(kind_N), FOREVER)
        return Devices(tuple(kinds), kind_N, **arrays, first_round=first, last_round=last)

    def __len__(self) -> int:
        return len(self.kind)

    def digest(self) -> str:
        """Return a short text that depends on every number."""
        content = hashlib.blake2b(digest_size=6)
        for name in RULES:
            content.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return content.hexdigest()


def check_stay(first_N: IntArray | FloatArray, last_N: IntArray | FloatArray, where: Callable[[int], str]) -> None:
    """Refuse the first client that leaves before it joins.

    Raises:
        ConfigurationError: names it.
    """
    wrong = np.flatnonzero(last_N < first_N)
    if len(wrong):
        first, last = int(first_N[wrong[0]]), int(last_N[wrong[0]])
        raise ConfigurationError(
            f"Expected last_round {where(int(wrong[0]))} to be at least its first_round, {first}, but got {last}"
        )
