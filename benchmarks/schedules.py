"""Buffered rounds of very many clients that come, go, fail and are away: bookkeeping per server step, and memory.

Bookkeeping is all of a round but local training, messages, sums and the server's step: who is within reach, the choice
of clients and of their levels, the clock and the staleness of entries. Its times are of the processor, so that other
processes do not distort them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from memory import slope
from scale import SAMPLES, Clock, fitted

from hetfl import HeteroFL, Level
from hetfl.accounting import Ledger
from hetfl.compression import ErrorFeedback, TopK
from hetfl.fleet import Between, Fleet, LogNormal, LogUniform, RandomFleet
from hetfl.fleet.numbers import IntArray
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.schedule import FRESH, Age, Buffered, Flight, OpenRound
from hetfl.selection import Uniform
from hetfl.store import DiskStore
from hetfl.types import Report, Task


class MeteredRound:
    """A round that measures how long clients train and the server receives.

    Args:
        current: the round that does the work.
    """

    def __init__(self, current: OpenRound) -> None:
        self.current, self.round, self.expected, self.seconds = current, current.round, 0, 0.0
        self.ledger: Ledger = current.ledger
        self.elsewhere = current.elsewhere

    def choose(self, draw: int, clients: IntArray | None = None, most: int | None = None) -> list[Task]:
        """Have the policies choose clients."""
        return self.current.choose(draw, clients, most)

    def dispatch(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients train."""
        begin = time.process_time()
        flights = list(self.current.dispatch(tasks))
        self.seconds += time.process_time() - begin
        yield from flights

    def send(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients begin to train elsewhere."""
        return self.current.send(tasks)

    def arrived(self, flights: Sequence[Flight]) -> Iterator[Flight]:
        """Wait for clients that work elsewhere."""
        return self.current.arrived(flights)

    def receive(self, flight: Flight, age: Age = FRESH) -> Report | None:
        """Have the server receive an update."""
        begin = time.process_time()
        report = self.current.receive(flight, age)
        self.seconds += time.process_time() - begin
        return report


class Metered(Buffered):
    """Buffered rounds that measure their bookkeeping.

    Attributes:
        bookkeeping: processor seconds of each round.
    """

    def __init__(self, size: int, concurrency: int) -> None:
        super().__init__(size, concurrency)
        self.bookkeeping: list[float] = []

    def run(self, current: OpenRound) -> None:
        """Run a round."""
        begin, metered = time.process_time(), MeteredRound(current)
        super().run(metered)
        self.bookkeeping.append(time.process_time() - begin - metered.seconds)


def churning(joining: int) -> Fleet:
    """Return a fleet of clients that join during some rounds, stay for 20 to 400, are away, and fail."""
    return RandomFleet(
        throughput=LogNormal(1e7, 3),
        downlink=LogUniform(1e5, 1e6),
        uplink=LogUniform(1e4, 1e5),
        availability=Between(0.2, 0.9),
        failure_rate=0.05,
        first_round=Between(0, joining),
        stays=Between(20, 400),
        period=600.0,
        variation=0.3,
    )


def run(clients: int, size: int, concurrency: int, rounds: int, joining: int = 200) -> tuple[list[float], Clock, int]:
    """Return the processor seconds of bookkeeping, the clock of a run, and the number of lost clients."""
    schedule = Metered(size, concurrency)
    module = HeteroFL(
        net=partial(ConvNet, hidden=(4, 8)),
        levels={"a": Level("a"), "b": Level("b", 0.5)},
        selection=Uniform(min(concurrency, clients)),
        local=LocalTraining(epochs=1, batch_size=SAMPLES),
        uplink=ErrorFeedback(TopK(0.05), DiskStore()),
        fleet=churning(joining),
        schedule=schedule,
        check_nesting=False,
    )
    _, clock = fitted(module, clients, rounds)
    return schedule.bookkeeping, clock, module.ledger.total.failed


def main() -> None:
    """Run from the command line (Linux only)."""
    options = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    options.add_argument("--clients", type=int, default=10_000, help="(default: %(default)s)")
    options.add_argument("--size", type=int, default=10, help="updates of a server step (default: %(default)s)")
    options.add_argument("--concurrency", type=int, default=100, help="clients at a time (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=300, help="the first half is warm-up (default: %(default)s)")
    given = options.parse_args()
    torch.set_num_threads(1)
    seconds, clock, failed = run(given.clients, given.size, given.concurrency, given.rounds)
    late = slice(given.rounds // 2, None)
    grown = slope(np.arange(given.rounds)[late], np.array(clock.allocated[late]))
    whole = statistics.median(np.diff(clock.ends)[given.rounds // 2 :].tolist())
    print(
        f"{given.clients} clients, {given.concurrency} at a time, {given.size} updates a step, {failed} failed: "
        f"bookkeeping {1000 * statistics.median(seconds[late]):.1f} ms a step (median; largest "
        f"{1000 * max(seconds[late]):.1f}) of {1000 * whole:.1f} ms, allocated {grown / 1024:+.1f} KiB a step"
    )


if __name__ == "__main__":
    main()
