"""What a fleet is: how long its clients take, when they are within reach, and when they fail."""

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


class Fleet(Piece):
    r"""The devices of all clients: one kind of fleet per subclass, which says what :meth:`draw` returns.

    With W bytes down, F floating-point operations and U bytes up, a round takes client k

    .. math:: t_k = \frac{W}{d_{k,r} \, \text{downlink}_k} + \frac{F}{c_{k,r} \, \text{throughput}_k}
        + \frac{U}{d_{k,r} \, \text{uplink}_k}, \qquad c_{k,r} = e^{\sigma z}, \; d_{k,r} = e^{\sigma' z'}, \;
        z, z' \sim N(0, 1)

    seconds, with σ the ``variation`` and σ' the ``link_variation``, drawn anew for every client and round r; a link
    that is slow is so both ways. A client is within reach for a share ``availability`` of every period P, from a moment
    of its own on: at time t while

    .. math:: (t / P + \varphi_k) \bmod 1 < \text{availability}_k, \qquad \varphi_k \sim U(0, 1).

    All answers are functions of the seed, the client, the round and the simulated time alone: the fleet keeps no state.

    Args:
        period: P, seconds after which a client's availability repeats.
        variation: σ, how much throughput varies from round to round; 0: not at all.
        link_variation: σ', how much both links vary from round to round; 0: not at all.

    Raises:
        ConfigurationError: one of them is out of its range.
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
            ConfigurationError: there are no such devices.
        """

    def setup(self, facts: Facts) -> None:
        """Draw the devices; see :meth:`draw`.

        Raises:
            ConfigurationError: there are no such devices, or in some round of the run there is no client.
        """
        num_clients, seed = facts.num_clients, facts.seed
        self.devices, self.seed = self.draw(num_clients, seed), seed
        self._phase_N = uniform(num_clients, seed, "fleet", "phase")
        self._everyone = np.arange(num_clients)
        self._factor: dict[str, tuple[int, FloatArray]] = {}  # of the round asked for last
        present = self.devices.first_round.max() == 0 and self.devices.last_round.min() == FOREVER
        self._always = bool(present and self.devices.availability.min() == 1.0)
        if facts.rounds is not None:
            self.check_rounds(facts.rounds)

    @property
    def always(self) -> bool:
        """Whether every client is within reach at any time of any round."""
        return self._always

    def seconds(self, clients: IntArray | int, round: int | None, work: Work) -> FloatArray:
        """Return how long work takes clients.

        Args:
            clients: ids, shape (S,), or one.
            round: the round; None: as fast as usual.
            work: what they do: numbers, or one entry per client.

        Returns:
            Seconds, shape (S,).
        """
        down, speed, up = self.rates(clients, round)
        seconds: FloatArray = work.down_bytes / down + work.flops / speed + work.up_bytes / up
        return seconds

    def rates(self, clients: IntArray | int, round: int | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return what clients can do in a round: bytes a second down, FLOP/s, bytes a second up, each of shape (S,).

        Args:
            clients: ids, shape (S,), or one.
            round: the round; None: as fast as usual.
        """
        devices, link = self.devices, self._varied("link", self.link_variation, clients, round)
        speed = devices.throughput[clients] * self._varied("speed", self.variation, clients, round)
        return devices.downlink[clients] * link, speed, devices.uplink[clients] * link

    def _varied(self, what: str, deviation: float, clients: IntArray | int, round: int | None) -> FloatArray | float:
        """Return the factors on a rate of clients in a round."""
        if round is None or not deviation:
            return 1.0
        if self._factor.get(what, (-1,))[0] != round:
            random = generator(self.seed, "fleet", what, round)
            drawn = torch.randn(len(self.devices), dtype=torch.float64, generator=random).numpy()
            self._factor[what] = (round, np.exp(deviation * drawn))
        factors: FloatArray = self._factor[what][1][clients]
        return factors

    def done(self, client: int, round: int, work: Work, seconds: float) -> Work:
        """Return how far one client gets with its work in so many seconds: first down, then computing, then up."""
        left, amounts = seconds, []
        for amount, rate in zip((work.down_bytes, work.flops, work.up_bytes), self.rates(client, round), strict=True):
            amounts.append(min(float(amount), left * float(rate)))
            left = max(0.0, left - float(amount / rate))
        down, flops, up = amounts
        return Work(int(down), flops, int(up), work.density)

    def reachable(self, round: int, now: float) -> IntArray:
        """Return the ids, ascending, of the clients that are within reach.

        Args:
            round: the round.
            now: simulated seconds since the beginning of the run.
        """
        if self.always:
            return self._everyone
        turn_N = now / self.period + self._phase_N
        available_N = turn_N - np.floor(turn_N) < self.devices.availability
        return np.flatnonzero(available_N & self._present(round))

    def _present(self, round: int) -> BoolArray:
        """Return which clients are there at all in a round."""
        present: BoolArray = (self.devices.first_round <= round) & (round <= self.devices.last_round)
        return present

    def next_reachable(self, round: int, now: float) -> float:
        """Return when somebody is within reach next, in simulated seconds: ``now`` if somebody is already.

        Args:
            round: the round.
            now: simulated seconds since the beginning of the run.

        Returns:
            The time; infinity if that will never be in this round.
        """
        if len(self.reachable(round, now)):
            return now
        present = np.flatnonzero(self._present(round))
        if not len(present):
            return math.inf
        turn = now / self.period + self._phase_N[present]
        then = now + self.period * float((np.floor(turn) + 1 - turn).min())
        late = 1e-12 * self.period
        while not len(self.reachable(round, then)):  # rounding can leave the time a hair before the turn
            then, late = then + late, 2 * late
        return then

    def check_rounds(self, rounds: int | None) -> None:
        """Refuse a run with a round that no client at all is there for.

        Args:
            rounds: how many it has; None or -1: without end.

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
        """Return in short text all that answers depend on; the devices themselves as a digest."""
        settings = f"period={self.period}, variation={self.variation}, link_variation={self.link_variation}"
        return f"{type(self).__name__}({settings}), {len(self.devices)} devices, {self.devices.digest()}"
