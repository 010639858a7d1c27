"""One round of federated learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from lightning.pytorch.core.optimizer import LightningOptimizer

from hetfl.defence.giants import name_giants
from hetfl.defence.ranges import within_ranges
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import Clients
from hetfl.federation.hosting import Hosting
from hetfl.federation.probing import Probing, RoundProbe
from hetfl.federation.server import Server
from hetfl.fleet import Work
from hetfl.fleet.numbers import IntArray
from hetfl.local import LocalTraining
from hetfl.piece import Piece, declared_extras
from hetfl.schedule import FRESH, Accepted, Age, Flight, Reply, Schedule
from hetfl.seeding import generator
from hetfl.selection import Everyone, Selection
from hetfl.types import Range, Report, Task
from hetfl.value import values_of_round

Follower = Callable[[Accepted | None, int, int], None]
"""Called after each client with its accepted update or None, the number of finished clients, and of all clients."""


class Round:
    """The steps of a round in their order: plan, train, receive, step.

    Args:
        pieces: all objects with a state.
        schedule: decides when clients train, and which updates the server receives before it steps.
        selection: chooses the clients that take part.
        local: the local training, with its number of epochs.
        probing: asks clients before training; has the level and the model of each client.
        clients: train.
        server: receives their updates.
        hosting: has the models.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        schedule: Schedule,
        selection: Selection,
        local: LocalTraining,
        probing: Probing,
        clients: Clients,
        server: Server,
        hosting: Hosting,
    ) -> None:
        self.pieces, self.schedule, self.selection, self.local = pieces, schedule, selection, local
        self._extras: list[tuple[int, dict[str, Range]]] = []  # those that pieces declare, from a round on
        self.values: dict[str, Mapping[int, float]] = {}  # of the last round, by measure and client
        self.probing, self.clients, self.server, self.hosting = probing, clients, server, hosting
        self.seed, self.ledger, self.fleet = hosting.problem.seed, server.ledger, server.ledger.fleet
        self.assignment, self.clustering = probing.assignment, probing.clustering

    def run(self, round: int, lr: float, optimizer: LightningOptimizer, follow: Follower) -> dict[str, float]:
        """Run a round, and return its columns.

        Args:
            round: its number, counted from 0.
            lr: the clients' learning rate γ_t.
            optimizer: the server's.
            follow: called after each client.

        Raises:
            ConfigurationError: all updates of the round were refused, or pieces declare different ranges of one extra.
        """
        for piece in self.pieces:
            piece.begin_round(round, lr)
        declared = declared_extras(self.pieces)
        if not self._extras or declared != self._extras[-1][1]:
            self._extras.append((round, declared))
        current = RunningRound(self, round, lr, follow)
        self.schedule.run(current)
        current.end()
        self.schedule.stepped(self.server.step(optimizer.optimizer, optimizer.step, round, self.clients.known))
        self.hosting.models.version += 1
        self.values = values_of_round(self.pieces, round)
        for piece in self.pieces:
            piece.end_round(round)
        fresh = self.clustering.new_models(round, len(self.hosting.models))
        self.hosting.renew(fresh, optimizer.optimizer, round, self.seed)
        return {"lr": lr, **self._columns(), **_mean_loss(current.reports)}

    def tasks(
        self,
        round: int,
        lr: float,
        probe: RoundProbe | None = None,
        draw: int | None = None,
        most: int | None = None,
    ) -> list[Task]:
        """Select clients, and return their tasks.

        Args:
            round: the round.
            lr: the clients' learning rate γ_t.
            probe: asks clients; None: no client is asked, and each keeps its last known cluster.
            draw: number of the choice, from which it is drawn; None: the round.
            most: the largest number of clients; None: all that the selection chooses.

        Raises:
            ConfigurationError: there is no probe, and the clients that take part depend on the simulated time.
        """
        if probe is None and not self.schedule.in_step:
            raise ConfigurationError(
                "Expected the schedule Synchronous, to replay which clients took part, but got "
                f"{type(self.schedule).__name__}, where that depends on the simulated time"
            )
        if probe is None and not self.fleet.always:
            raise ConfigurationError(
                "Expected a fleet whose clients are always within reach, to replay which clients took part, but got "
                f"{type(self.fleet).__name__}, where reach depends on the simulated time"
            )
        draw = round if draw is None else draw
        cohort = self.selection.cohort(draw, probe or Everyone(len(self.selection.sizes)))[:most]
        if probe is not None:
            self.clustering.assign(round, cohort, probe)
            self.hosting.task_parts.rule.consult(round, cohort, probe)
            for piece in self.pieces:
                piece.inquire(round, cohort, probe)
        level, mark, drawn = self.assignment.level, self.hosting.models.mark, self.hosting.task_parts.drawn
        models, owner = self.clustering.models_of, self.clustering.owner
        epochs = self.local.epochs_of(len(cohort), generator(self.seed, "stragglers", draw))
        return [
            drawn(Task(client, level(client, round), round, mark, lr, epochs=passes, model=k, owner=owner(client, k)))
            for client, passes in zip(cohort, epochs, strict=True)
            for k in models(client, round)
        ]

    def extras(self, round: int) -> dict[str, Range]:
        """Return by name the ranges of the extra numbers that clients which took the model in a round report."""
        return next((extras for first, extras in reversed(self._extras) if first <= round), {})

    def _columns(self) -> dict[str, float]:
        columns: dict[str, float] = {}
        for piece in self.pieces:
            columns |= piece.columns()
        columns |= self.server.hooks.totals()
        models, assigned = len(self.hosting.models), self.clustering.assigned
        if self.clustering.several(models):
            columns["cluster/count"] = float(models)
            columns |= {f"cluster/size/{model}": float(assigned.count(model)) for model in range(models)}
        return columns


class RunningRound:
    """What a schedule can do in a round; see :class:`hetfl.schedule.OpenRound`.

    Args:
        of: the steps of a round.
        round: the round's number.
        lr: the clients' learning rate γ_t.
        follow: called after each client.

    Attributes:
        reports: of the accepted updates.
        elsewhere: whether clients work elsewhere, in real time.
    """

    def __init__(self, of: Round, round: int, lr: float, follow: Follower) -> None:
        self.of, self.round, self.lr, self.follow, self.ledger = of, round, lr, follow, of.ledger
        self.server, self.reports, self.elsewhere = of.server, list[Report](), of.clients.arrives
        self.expected = self._done = 0
        self._open, self._peaks = False, dict[int, float]()

    def choose(self, draw: int, clients: IntArray | None = None, most: int | None = None) -> list[Task]:
        """Have the policies choose clients, and return their tasks."""
        probing = self.of.probing
        self.probe = probing.of_round(self.round) if clients is None else probing.of_clients(clients, self.round)
        return self.of.tasks(self.round, self.lr, self.probe, draw, most)

    def dispatch(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients take the model and train; first come the clients that are lost."""
        sending = list[Task]()
        yield from self._lost_ones(tasks, sending)
        for reply in self.of.clients.train(sending):
            yield self._with(self._flight(reply.task), reply)
        self.server.note_downloads(tasks, self.probe)

    def send(self, tasks: Sequence[Task]) -> Iterator[Flight]:
        """Have clients take the model and begin to train elsewhere; their flights have no end yet."""
        sending = list[Task]()
        yield from self._lost_ones(tasks, sending)
        flights = [replace(self._flight(task), end=math.inf) for task in sending]
        self.of.clients.post(sending)
        yield from flights
        self.server.note_downloads(tasks, self.probe)

    def arrived(self, flights: Sequence[Flight]) -> Iterator[Flight]:
        """Wait shortly for clients that work elsewhere; yield those of their flights that have ended."""
        flight_of = {flight.task.key: flight for flight in flights}
        for reply in self.of.clients.arrived([flight.task for flight in flights]):
            yield self._with(flight_of[reply.task.key], reply)

    def _lost_ones(self, tasks: Sequence[Task], sending: list[Task]) -> Iterator[Flight]:
        """Yield the flights of clients that are lost, and add the tasks of all others to ``sending``."""
        asks, informed = self.server.aggregators.first.asks_losses, list[Task]()
        if asks:
            self.probe.ask(tasks)
        self._begin()
        for task in tasks:
            if asks and self.probe.initial_loss(task) is None:
                yield Flight(task, Work(0, 0.0))  # the aggregator's weight needs the initial loss
            else:
                informed.append(task)
        for task in informed:
            if (work := self._lost(task)) is not None:
                yield Flight(task, work)
            else:
                sending.append(task)

    def receive(self, flight: Flight, age: Age = FRESH) -> Report | None:
        """Have the server receive an update; return the completed report if it was accepted."""
        self._begin()
        accepted = self.server.receive(flight, age)
        if accepted is None:
            for piece in self.of.pieces:
                piece.miss(flight.task, flight.task.client in self.ledger.late)
        elif flight.reply is not None:
            self._peaks[accepted.report.client] = accepted.peak
            for piece in self.of.pieces:
                piece.observe(accepted.update, accepted.index, accepted.report)
            self.of.clients.take(flight.reply, accepted.update)
            self.reports.append(accepted.report)
        self._done += 1
        if flight.reply is not None:
            self.follow(accepted, self._done, max(self.expected, self._done))
        return None if accepted is None else accepted.report

    def end(self) -> None:
        """Name the clients with huge updates."""
        self._begin()
        name_giants(self.round, self._peaks, self.ledger.called)

    def _begin(self) -> None:
        """Begin the sums of updates, once in a round."""
        if not self._open:
            self._open = True
            self.ledger.begin_phase("training")
            self.server.reset()
            self.server.hooks.regroup(self.of.clustering.trained)

    def _flight(self, task: Task) -> Flight:
        """Return the flight of a task that has no answer yet."""
        work = Work(self.server.down_bytes(task, self.probe), 0.0)
        return Flight(task, work, None, self.of.selection.weight(task.client), self.probe.initial_loss(task))

    def _with(self, flight: Flight, reply: Reply) -> Flight:
        """Return a flight with its answer, and the work that the answer reports."""
        reply, work = self._checked(reply), flight.work
        if reply.report is not None:
            levels, report = self.of.hosting.models.levels, reply.report
            work = levels.work(reply.task, int(work.down_bytes), report.passes, len(reply.payload), training=True)
        return replace(flight, task=reply.task, work=work, reply=reply)

    def _checked(self, reply: Reply) -> Reply:
        """Return a reply, with a refusal if a number in the client's report is out of its range."""
        task, local = reply.task, self.of.local
        if reply.report is None:
            return reply
        samples, epochs = self.of.selection.sizes[task.client], task.epochs or local.epochs
        report, wrong = within_ranges(reply.report, samples, epochs, self.of.extras(task.round))
        return replace(reply, report=report, refusal=reply.refusal or wrong) if wrong else reply

    def _lost(self, task: Task) -> Work | None:
        """Return the work of a client whose update will not arrive in time; None if it will.

        The training of a client that is lost is not simulated.
        """
        share = self.of.fleet.fails(task.client, task.round)
        if share is None and self.ledger.deadline is None:
            return None
        down_bytes = self.server.down_bytes(task, self.probe)
        flops = self.of.probing.forecast.training_flops(task.client, task.level, task.epochs)
        density = self.of.hosting.models.levels.flop_density(task.level, task.part)
        work = Work(down_bytes, flops * (1.0 if share is None else share), density=density)
        return None if share is None and self.ledger.in_time(task.client, task.round, work) else work


def _mean_loss(reports: Sequence[Report]) -> dict[str, float]:
    """Return the column of the mean training loss over samples, or no column if there are no reports."""
    samples = sum(report.samples for report in reports)
    return {"train/loss": sum(report.loss * report.samples for report in reports) / samples} if reports else {}
