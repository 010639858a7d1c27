"""The base class of fleets: the speeds of clients' devices, when clients are reachable, and when they fail."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.devices import Devices, Work
from hetfl.fleet.numbers import FOREVER, BoolArray, FloatArray, IntArray, uniform
from hetfl.piece import Facts, Piece
from hetfl.seeding import generator

DAY = 86400.0
"""Seconds."""
ROUNDS = 32
"""Number of rounds whose variations are kept: clients of several rounds may be under way."""


class Fleet(Piece):
    r"""The devices of all clients; a subclass defines :meth:`draw`, which returns them.

    With W bytes down, F floating-point operations and U bytes up, a round of client k takes

    .. math:: t_k = \frac{W}{d_{k,r} \, \text{downlink}_k} + \frac{F}{c_{k,r} \, \text{throughput}_k}
        + \frac{U}{d_{k,r} \, \text{uplink}_k}, \qquad c_{k,r} = e^{\sigma z}, \; d_{k,r} = e^{\sigma' z'}, \;
        z, z' \sim N(0, 1)

    seconds, with σ the ``variation`` and σ' the ``link_variation``. z and z' are drawn anew for every client and round
    r; both directions of a link have the same factor. A client is reachable for a share ``availability`` of every
    period P, which begins at a random time for each client: it is reachable at time t if

    .. math:: (t / P + \varphi_k) \bmod 1 < \text{availability}_k, \qquad \varphi_k \sim U(0, 1).

    All answers are functions of only the seed, the client, the round and the simulated time: the fleet has no state.

    Args:
        period: P, seconds after which a client's availability repeats.
        variation: σ, standard deviation of the logarithm of the throughput over rounds; 0: no variation.
        link_variation: σ', standard deviation of the logarithm of both links' speed over rounds; 0: no variation.

    Raises:
        ConfigurationError: an argument is out of its range.
    """

    def __init__(self, period: float = DAY, variation: float = 0.0, link_variation: float = 0.0) -> None:
        if not 0 < period < math.inf:
            raise ConfigurationError(f"Expected period, in seconds, above 0 but got {period}")
        for name, value in (("variation", variation), ("link_variation", link_variation)):
            if not 0 <= value <= 3:
                raise ConfigurationError(f"Expected {name} in [0, 3], a standard deviation of logs, but got {value}")
        self.period, self.variation, self.link_variation = period, variation, link_variation

    @abstractmethod
    def draw(self, num_clients: int, seed: int) -> Devices:
        """Return the clients' devices.

        Args:
            num_clients: number of clients N.
            seed: of every random choice.

        Raises:
            ConfigurationError: the devices cannot be made for so many clients.
        """

    def setup(self, facts: Facts) -> None:
        """Draw the devices; see :meth:`draw`.

        Raises:
            ConfigurationError: the devices cannot be made, or some round of the run has no clients.
        """
        num_clients, seed = facts.num_clients, facts.seed
        self.devices, self.seed = self.draw(num_clients, seed), seed
        self._phase_N = uniform(num_clients, seed, "fleet", "phase")
        self._everyone = np.arange(num_clients)
        self._factors: dict[tuple[str, int], FloatArray] = {}  # by rate and round, the oldest first
        present = self.devices.first_round.max() == 0 and self.devices.last_round.min() == FOREVER
        self._always = bool(present and self.devices.availability.min() == 1.0)
        if facts.rounds is not None:
            self.check_rounds(facts.rounds)

    @property
    def always(self) -> bool:
        """Whether every client is reachable at any time of any round."""
        return self._always

    def seconds(self, clients: IntArray | int, round: int | None, work: Work) -> FloatArray:
        """Return the seconds that clients need for some work.

        Args:
            clients: ids, shape (S,), or one.
            round: the round; None: at their usual speeds.
            work: their work: numbers, or one entry per client.

        Returns:
            Seconds, shape (S,).
        """
        down, speed, up = self.rates(clients, round)
        seconds: FloatArray = work.down_bytes / down + work.flops / speed + work.up_bytes / up
        return seconds

    def rates(self, clients: IntArray | int, round: int | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return clients' rates in a round: bytes/s down, FLOP/s, and bytes/s up, each of shape (S,).

        Args:
            clients: ids, shape (S,), or one.
            round: the round; None: their usual rates.
        """
        devices, link = self.devices, self._varied("link", self.link_variation, clients, round)
        speed = devices.throughput[clients] * self._varied("speed", self.variation, clients, round)
        return devices.downlink[clients] * link, speed, devices.uplink[clients] * link

    def _varied(self, rate: str, deviation: float, clients: IntArray | int, round: int | None) -> FloatArray | float:
        """Return the factors of clients' rate (``link`` or ``speed``) in a round."""
        if round is None or not deviation:
            return 1.0
        if (rate, round) not in self._factors:
            random = generator(self.seed, "fleet", rate, round)
            drawn = torch.randn(len(self.devices), dtype=torch.float64, generator=random).numpy()
            self._factors[rate, round] = np.exp(deviation * drawn)
            if len(self._factors) > ROUNDS:
                del self._factors[next(iter(self._factors))]
        factors: FloatArray = self._factors[rate, round][clients]
        return factors

    def done(self, client: int, round: int, work: Work, seconds: float) -> Work:
        """Return the part of a client's work that it completes in so many seconds: download, compute, then upload."""
        left, amounts = seconds, []
        for amount, rate in zip((work.down_bytes, work.flops, work.up_bytes), self.rates(client, round), strict=True):
            amounts.append(min(float(amount), left * float(rate)))
            left = max(0.0, left - float(amount / rate))
        down, flops, up = amounts
        return Work(int(down), flops, int(up), work.density)

    def reachable(self, round: int, now: float) -> IntArray:
        """Return the ids, ascending, of the reachable clients.

        Args:
            round: the round.
            now: simulated seconds since the beginning of the run.
        """
        return self._everyone if self.always else np.flatnonzero(self._available(now) & self._present(round))

    def _available(self, now: float) -> BoolArray:
        """Return which devices are within reach at a time, bool (N,)."""
        turn_N = now / self.period + self._phase_N
        available: BoolArray = turn_N - np.floor(turn_N) < self.devices.availability
        return available

    def _present(self, round: int) -> BoolArray:
        """Return which clients have joined and not left in a round, bool (N,)."""
        present: BoolArray = (self.devices.first_round <= round) & (round <= self.devices.last_round)
        return present

    def next_reachable(self, round: int, now: float, among: BoolArray | None = None) -> float:
        """Return the next time at which a client is reachable, in simulated seconds: ``now`` if one is already.

        Args:
            round: the round.
            now: simulated seconds since the beginning of the run.
            among: the clients that count, bool (N,); None: all.

        Returns:
            The time; infinity if no such client takes part in this round.
        """
        wanted_N = self._present(round) if among is None else self._present(round) & among
        if bool((self._available(now) & wanted_N).any()):
            return now
        present = np.flatnonzero(wanted_N)
        if not len(present):
            return math.inf
        turn = now / self.period + self._phase_N[present]
        then = now + self.period * float((np.floor(turn) + 1 - turn).min())
        late = 1e-12 * self.period
        while not (self._available(then) & wanted_N).any():  # by rounding, the time may be slightly too early
            then, late = then + late, 2 * late
        return then

    def check_rounds(self, rounds: int | None) -> None:
        """Refuse a run with a round that has no clients.

        Args:
            rounds: the run's number of rounds; None or -1: unlimited.

        Raises:
            ConfigurationError: names the first such round.
        """
        empty = self._first_empty_round()
        if empty is not None and (rounds is None or rounds < 0 or empty < rounds):
            raise ConfigurationError(
                f"Expected a client in every round but got a fleet without any in round {empty}: all have left, or are "
                "yet to join (rounds count from 0)"
            )

    def _first_empty_round(self) -> int | None:
        order = np.argsort(self.devices.first_round, kind="stable")
        first, last = self.devices.first_round[order], np.maximum.accumulate(self.devices.last_round[order])
        if first[0] > 0:
            return 0
        gaps = np.flatnonzero(first[1:] > last[:-1] + 1)
        end = int(last[gaps[0]] if len(gaps) else last[-1])
        return None if end == FOREVER else end + 1

    def fails(self, client: int, round: int) -> float | None:
        """Return the share of its training after which a client fails in a round; None: it does not fail."""
        rate = float(self.devices.failure_rate[client])
        if not rate:
            return None
        drawn, share = uniform(2, self.seed, "fleet", "failure", round, client).tolist()
        return share if drawn < rate else None

    def describe(self) -> str:
        """Return all settings as short text, with a digest of the devices."""
        settings = f"period={self.period}, variation={self.variation}, link_variation={self.link_variation}"
        return f"{type(self).__name__}({settings}), {len(self.devices)} devices, {self.devices.digest()}"
