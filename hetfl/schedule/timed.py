"""The event loop of schedules in which clients do not wait for each other."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import BoolArray
from hetfl.part import Part
from hetfl.piece import Facts, Piece
from hetfl.schedule.age import Age, counted, staleness, weighted
from hetfl.schedule.base import OpenRound, Row, Schedule
from hetfl.schedule.clocks import Clock, RealClock, SimulatedClock
from hetfl.schedule.columns import Arrivals
from hetfl.schedule.flight import Flight, restored, saved
from hetfl.schedule.refusals import check_pieces
from hetfl.schedule.staleness import Polynomial, StalenessWeight
from hetfl.schedule.timed_ledger import TimedLedger
from hetfl.updates import Update


class Timed(Schedule):
    r"""Base class of schedules in which a client takes the model when it is free, and reports when its device is done.

    A round is one server step. It begins at the simulated time at which the last round ended. Free places are filled
    with clients that the selection chooses among those that are within reach and free; they take the present model. The
    clock moves to the next time at which an update arrives, a client is lost, or a client comes within reach while
    there is a free place. Clients that the selection has declined in the round do not count. All arrivals of that time
    are received, in the order in which their clients took the model. Then the server steps if it is due; otherwise free
    places are filled again.

    A client takes each version of the model at most once, and is not chosen while its update waits for the server's
    step. Local training is computed when the client takes the model. Its encoded update and what it keeps if the server
    accepts wait here until the client's device is done; so a checkpoint holds the clients that are under way, and
    memory grows with their number only.

    An update counts with the factor :math:`s(\tau_{k,j})` at entry j, where :math:`\tau_{k,j}` is the number of server
    steps that changed the entry since client k took it. Entries that few clients hold are less stale. The aggregator
    divides by the holders among the received updates, and not by the sum of factors, as FedBuff does. Residuals are
    those of the update without the factor. A ``deadline`` counts from the moment at which a client takes the model.

    Costs of a client are counted when its update arrives or is lost.

    Where clients are on nodes of Flower, the clock is the real one: a client reports when its answer arrives. Then a
    run cannot be repeated bit for bit, and a checkpoint does not hold the clients that are under way: a resumed run
    counts them as lost.

    Args:
        concurrency: number of clients that work at a time; None: the selection's ``clients_per_round``.
        staleness: s; None: :class:`~hetfl.schedule.Polynomial`.

    Raises:
        ConfigurationError: ``concurrency`` is below 1.
    """

    def __init__(self, concurrency: int | None = None, staleness: StalenessWeight | None = None) -> None:
        if concurrency is not None and concurrency < 1:
            raise ConfigurationError(f"Expected concurrency of at least 1 or null but got {concurrency}")
        self.concurrency, self.staleness = concurrency, staleness or Polynomial()
        self._num_clients = 0
        self._simulated_clock, self.real_clock = SimulatedClock(), RealClock()
        self._forget()

    def _forget(self) -> None:
        self._flights: dict[int, Flight] = {}  # by client, in the order of their numbers
        self._number = self._draw = 0
        self._steps_D: Tensor | None = None  # per entry of the global model, the number of steps that changed it
        # By round, these numbers at its beginning, for the rounds of which clients are under way.
        self._taken: dict[int, Tensor | None] = {}
        self._asked: set[int] = set()  # clients that took the model in this round, or whose update has arrived
        self._declined: set[int] = set()  # clients that the selection has not chosen for free places of this round
        self._arrivals = Arrivals()

    def ledger(self, fleet: Fleet, deadline: float | None) -> TimedLedger:  # noqa: D102
        return TimedLedger(fleet, deadline)

    def check(self, pieces: Mapping[str, Piece]) -> None:  # noqa: D102
        check_pieces(type(self).__name__, pieces)

    def setup(self, facts: Facts) -> None:
        """Set the number of clients; with another number, nobody is under way.

        Raises:
            ConfigurationError: ``concurrency`` is larger than it.
        """
        if self.concurrency is not None and self.concurrency > facts.num_clients:
            raise ConfigurationError(
                f"Expected concurrency of at most the number of clients, {facts.num_clients}, but got "
                f"{self.concurrency}"
            )
        self._places = self.concurrency or facts.cohort
        if self._num_clients not in (0, facts.num_clients):
            self._forget()
        self._num_clients = facts.num_clients

    @abstractmethod
    def due(self, round: int, accepted: int, now: float) -> bool:
        """Return whether the server steps.

        Args:
            round: the round.
            accepted: number of updates that it accepted in the round.
            now: simulated seconds since the beginning of the run.
        """

    def expected(self) -> int:
        """Return the number of clients that usually report in a round."""
        return self._places

    def limit(self, round: int) -> float:
        """Return the simulated time at which a round ends; infinity: it is unknown."""
        return math.inf

    def run(self, current: OpenRound) -> None:  # noqa: D102
        ledger, current.expected = current.ledger, self.expected()
        assert isinstance(ledger, TimedLedger)
        self._asked, self._declined, self._arrivals = set(), set(), Arrivals()
        self._taken[current.round] = self._steps_D
        self.begin_taking(current.round)
        clock = self.real_clock if current.elsewhere else self._simulated_clock
        while True:
            self._fill(current, ledger, clock)
            until = min(self._next_reach(current, ledger), self.limit(current.round))
            ended = clock.ended(current, ledger, list(self._flights.values()), until)
            if ended is None:
                if not self._asked:
                    ledger.wait(current.round)  # raises if there will be no client
                break
            self._receive(current, ended)
            if self.due(current.round, self._arrivals.accepted, ledger.now):
                break
        self._prune()

    def _fill(self, current: OpenRound, ledger: TimedLedger, clock: Clock) -> None:
        """Have free clients take the model until all places are taken or no client can be chosen."""
        reachable = ledger.fleet.reachable(current.round, ledger.now)
        ledger.reachable = len(reachable)
        while (places := self._places - len(self._flights)) > 0:
            choosable = reachable[self._free()[reachable]]
            tasks = current.choose(self._draw, choosable, places) if len(choosable) else []
            if not tasks:
                self._declined.update(choosable.tolist())
                return
            self._draw += 1
            self._asked.update(task.client for task in tasks)
            for flight in clock.begun(current, ledger, tasks):
                self._flights[flight.task.client] = replace(flight, number=self._number)
                self._number += 1

    def _free(self) -> BoolArray:
        """Return which clients can be chosen if they are within reach, bool (N,)."""
        free = np.ones(self._num_clients, np.bool_)
        free[[*self._flights, *self._asked]] = False
        return free

    def _next_reach(self, current: OpenRound, ledger: TimedLedger) -> float:
        """Return the next time at which a client comes within reach that can take a free place.

        A client that the selection has declined in this round does not count.
        """
        if len(self._flights) >= self._places or ledger.fleet.always:
            return math.inf
        absent = self._free()
        absent[list(self._declined)] = False
        absent[ledger.fleet.reachable(current.round, ledger.now)] = False
        return ledger.fleet.next_reachable(current.round, ledger.now, absent)

    def _receive(self, current: OpenRound, ended: Sequence[Flight]) -> None:
        """Have the server receive the updates that have arrived, in the order in which their clients took the model."""
        for flight in ended:
            del self._flights[flight.task.client]
            age = self._age(flight, current.round)
            report = current.receive(flight, age)
            self._arrivals.add(current.round, flight, age, report is not None)
            if report is not None:
                self._asked.add(flight.task.client)

    def _age(self, flight: Flight, round: int) -> Age:
        """Return the staleness of an update, and what becomes of it."""
        taken, sent, tensors = flight.task.round, flight.task.sent, self.parts.models.tensors[0]
        if flight.reply is None:
            return Age(steps=round - taken)
        if self._steps_D is None:  # no step has changed the model yet
            stale_D = torch.zeros(sent.size, dtype=torch.int32)
        else:
            stale_D = staleness(self._steps_D, self._taken[taken], sent, self.parts.models.levels.whole)
        most = int(stale_D.max()) if stale_D.numel() else 0
        mean = float(stale_D.double().mean()) if stale_D.numel() else 0.0
        factors_D = self.staleness.factor(stale_D.to(tensors[next(iter(sent))]))
        return Age(round - taken, mean, most, self.change(taken, sent, factors_D, most))

    def change(self, taken: int, sent: Part, factors_D: Tensor, most: int) -> Callable[[Update], Update] | None:
        """Return the function that makes of a decoded update what is aggregated; None: nothing changes.

        Args:
            taken: the round in which the client took the model.
            sent: the entries of its update.
            factors_D: s(τ) of these entries, shape (D,).
            most: the largest τ.
        """
        return None if most == 0 else partial(weighted, factors_D=factors_D)

    def begin_taking(self, round: int) -> None:
        """Note the models that clients take in a round; by default nothing is noted."""

    def _prune(self) -> None:
        """Forget the numbers of steps of rounds of which no client is under way."""
        rounds = {flight.task.round for flight in self._flights.values()}
        self._taken = {round: steps for round, steps in self._taken.items() if round in rounds}

    def stepped(self, holders: Mapping[str, Tensor]) -> None:  # noqa: D102
        if holders:
            self._steps_D = counted(self._steps_D, holders, self.parts.models.levels.whole)

    def columns(self) -> dict[str, float]:
        """Return the numbers of updates and of clients under way, and the staleness of the accepted updates."""
        levels = list(self.parts.models.levels)
        return {**self._arrivals.columns(levels), "schedule/in_flight": float(len(self._flights))}

    def rows(self) -> list[Row]:  # noqa: D102
        return self._arrivals.rows

    def state_dict(self) -> dict[str, Any]:
        """Return the clients that are under way, with their updates and what they keep; and the numbers of steps."""
        return {
            "number": self._number,
            "draw": self._draw,
            "flights": [saved(flight, self.parts) for flight in self._flights.values()],
            "steps": None if self._steps_D is None else self._steps_D.cpu(),
            "taken": {round: None if steps is None else steps.cpu() for round, steps in self._taken.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._number, self._draw = state["number"], state["draw"]
        flights = [restored(each, self.parts) for each in state["flights"]]
        self._flights = {flight.task.client: flight for flight in flights}
        self._steps_D, self._taken = state["steps"], dict(state["taken"])
