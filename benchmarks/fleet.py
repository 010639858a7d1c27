"""The bookkeeping of a round for a fleet of 100 000 clients: clients within reach, cohort, levels, predictions.

The baseline is a random permutation of the clients, which uniform selection needs anyway. Before the timing, predicted
seconds are compared with those that are computed client by client.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from timing import Row, interleaved, parser, report, rows, threads

from hetfl.accounting import Forecast, Ledger
from hetfl.fleet import Between, Dynamic, Fleet, LogNormal, LogUniform, RandomFleet, SameDevice, Work
from hetfl.piece import Facts
from hetfl.selection import Everyone, Uniform

ENTRIES = {"a": 373_130, "b": 94_410, "c": 24_170}
FLOPS = {"a": (4.8e6, 14.3e6), "b": (1.2e6, 3.6e6), "c": (0.3e6, 0.9e6)}


def random_fleet() -> Fleet:
    """Return a fleet with different devices that vary over time."""
    return RandomFleet(
        throughput=LogNormal(1e10, 3),
        downlink=LogUniform(1e6, 1e7),
        uplink=LogUniform(1e5, 1e6),
        availability=Between(0.2, 0.9),
        failure_rate=0.05,
        first_round=Between(0, 10),
        variation=0.3,
    )


class Round:
    """The bookkeeping of rounds, without training.

    Args:
        fleet: the devices.
        clients: number of clients N.
    """

    def __init__(self, fleet: Fleet, clients: int) -> None:
        fleet.setup(Facts([1] * clients, 0))
        self.fleet, self.numbers = fleet, itertools.count(10)
        self.assignment, self.selection, self.ledger = Dynamic(), Uniform(10), Ledger(fleet, deadline=60.0)
        self.assignment.setup(Facts([1] * clients, 0, list(ENTRIES)))
        sizes = [20 + k % 30 for k in range(clients)]
        self.selection.setup(Facts(sizes))
        self.forecast = Forecast(fleet, sizes, 1, ENTRIES, FLOPS)

    def check(self) -> None:
        """Compare the predictions for all clients with those for single clients.

        Raises:
            RuntimeError: the predictions differ.
        """
        together = self.predict(7)
        for k in range(0, len(together), max(1, len(together) // 50)):
            level, devices = self.assignment.level(k, 7), self.fleet.devices
            size = float(self.forecast.bytes_L[list(ENTRIES).index(level)])
            work = Work(int(size), FLOPS[level][1] * (20 + k % 30), size)
            alone = float(self.fleet.seconds(k, 7, work))
            if self.fleet.variation == 0:
                alone = size / devices.downlink[k] + work.flops / devices.throughput[k] + size / devices.uplink[k]
            if not np.isclose(together[k], alone, rtol=1e-12):
                raise RuntimeError(f"Expected {alone} seconds for client {k} but got {together[k]}")

    def predict(self, number: int) -> list[float]:
        """Return the predicted seconds of every client, as for a selection that needs all of them."""
        positions = self.assignment.positions(number)
        seconds: list[float] = self.forecast.seconds(np.arange(len(positions)), positions, number).tolist()
        return seconds

    def book(self, predicting: bool) -> None:
        """Do the bookkeeping of a round: reach, levels, cohort, failures, the clock, clients for statistics."""
        number = next(self.numbers)
        self.ledger.begin_round(0, 0.1)
        reachable = self.ledger.wait(number)
        probe = Everyone(len(reachable))
        probe.clients = range(len(reachable)) if self.fleet.always else reachable.tolist()
        if predicting:
            self.predict(number)
        self.ledger.begin_phase("training")
        for client in self.selection.select(number, probe):
            self.assignment.level(client, number)
            work = Work(1_500_000, 1e9, 50_000)
            if self.fleet.fails(client, number) is None and self.ledger.in_time(client, number, work):
                self.ledger.charge(client, number, work)
            else:
                self.ledger.lose(client, number, work)
        reachable = self.ledger.wait(number)
        order = reachable[torch.randperm(len(reachable)).numpy()]
        for level in range(len(ENTRIES)):
            np.isin(self.assignment.positions(number)[order], range(level + 1))


def bookkeeping(clients: int, *, blocks: int) -> list[Row]:
    """Return the times of the bookkeeping of a round for two fleets, with and without predictions for all clients."""
    same, random = Round(SameDevice(), clients), Round(random_fleet(), clients)
    same.check()
    random.check()
    sides: dict[str, Callable[[], object]] = {
        "a permutation of the clients": lambda: torch.randperm(clients),
        "SameDevice": lambda: same.book(predicting=False),
        "RandomFleet": lambda: random.book(predicting=False),
        "RandomFleet, all predicted": lambda: random.book(predicting=True),
    }
    with threads(1):
        return rows(f"fleet, {clients:,} clients", interleaved(sides, blocks=blocks))


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, default=100_000, help="number of clients (default: %(default)s)")
    given = options.parse_args()
    report(bookkeeping(given.clients, blocks=given.blocks), given.json)


if __name__ == "__main__":
    main()
