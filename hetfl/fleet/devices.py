"""The clients' devices as arrays, and the work of clients."""

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
    """The work of clients in a round, in this order; numbers, or arrays with one entry per client.

    Attributes:
        down_bytes: bytes to download.
        flops: floating-point operations.
        up_bytes: bytes to send.
        density: share of the operations that use entries that the client holds.
    """

    down_bytes: int | IntArray
    flops: float | FloatArray
    up_bytes: float | IntArray | FloatArray = 0
    density: float = 1.0


@dataclass(frozen=True)
class Devices:
    """The devices of N clients, with an entry per client in every array; see :class:`~hetfl.fleet.Device`.

    Attributes:
        kinds: names of the kinds of devices.
        kind: each client's kind, as a position in ``kinds``.
        throughput: floating-point operations per second.
        downlink: bytes per second to the client.
        uplink: bytes per second from it.
        availability: share of the time in which it is reachable.
        failure_rate: probability of failing in a round.
        first_round: the round in which the client joins.
        last_round: the last round in which it takes part.

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
        """Return devices of a few kinds, with equal devices of a kind, which never join late or leave.

        Args:
            kinds: a device of each kind, by name.
            kind_N: each client's kind, as a position in ``kinds``, shape (N,).
        """
        names = ("throughput", "downlink", "uplink", "availability", "failure_rate")
        arrays = {name: np.array([getattr(device, name) for device in kinds.values()])[kind_N] for name in names}
        first, last = np.zeros(len(kind_N), np.int64), np.full(len(kind_N), FOREVER)
        return Devices(tuple(kinds), kind_N, **arrays, first_round=first, last_round=last)

    def __len__(self) -> int:
        return len(self.kind)

    def digest(self) -> str:
        """Return a short digest of all numbers."""
        content = hashlib.blake2b(digest_size=6)
        for name in RULES:
            content.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return content.hexdigest()


def check_stay(first_N: IntArray | FloatArray, last_N: IntArray | FloatArray, where: Callable[[int], str]) -> None:
    """Refuse clients that leave before they join.

    Args:
        first_N: rounds in which clients join, shape (N,).
        last_N: last rounds of clients, shape (N,).
        where: returns text that names a client.

    Raises:
        ConfigurationError: names the first such client.
    """
    wrong = np.flatnonzero(last_N < first_N)
    if len(wrong):
        first, last = int(first_N[wrong[0]]), int(last_N[wrong[0]])
        raise ConfigurationError(
            f"Expected last_round {where(int(wrong[0]))} to be at least its first_round, {first}, but got {last}"
        )
