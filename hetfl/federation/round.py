"""One round of federated learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lightning.pytorch.core.optimizer import LightningOptimizer

from hetfl.defence.giants import name_giants
from hetfl.defence.ranges import within_ranges
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import Clients, Reply
from hetfl.federation.hosting import Hosting
from hetfl.federation.probing import Probing, RoundProbe
from hetfl.federation.server import Accepted, Server
from hetfl.fleet import Work
from hetfl.local import LocalTraining
from hetfl.piece import Piece
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
        selection: Selection,
        local: LocalTraining,
        probing: Probing,
        clients: Clients,
        server: Server,
        hosting: Hosting,
    ) -> None:
        self.pieces, self.selection, self.local, self.probing = pieces, selection, local, probing
        self.extras: dict[str, Range] = {}
        self.values: dict[str, Mapping[int, float]] = {}  # of the last round, by measure and client
        self.clients, self.server, self.hosting = clients, server, hosting
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
        self.extras = declared_extras(self.pieces)
        probe = self.probing.of_round(round)
        tasks = self.tasks(round, lr, probe)
        if self.server.aggregators.first.asks_losses:
            probe.ask(tasks)
        self.ledger.begin_phase("training")
        self.server.reset()
        self.server.hooks.regroup(self.clustering.assigned)
        reports = self._train(tasks, probe, follow)
        self.server.step(optimizer.optimizer, optimizer.step, round, self.clients.known)
        self.hosting.models.version += 1
        self.values = values_of_round(self.pieces, round)
        for piece in self.pieces:
            piece.end_round(round)
        fresh = self.clustering.new_models(round, len(self.hosting.models))
        self.hosting.renew(fresh, optimizer.optimizer, round, self.seed)
        return {"lr": lr, **self._columns(), **_mean_loss(reports)}

    def tasks(self, round: int, lr: float, probe: RoundProbe | None = None) -> list[Task]:
        """Select the cohort of a round, and return its tasks.

        Args:
            round: the round.
            lr: the clients' learning rate γ_t.
            probe: asks clients; None: no client is asked, and each keeps its last known cluster.

        Raises:
            ConfigurationError: there is no probe, and the reachable clients depend on the simulated time.
        """
        if probe is None and not self.fleet.always:
            raise ConfigurationError(
                "Expected a fleet whose clients are always within reach, to replay which clients took part, but got "
                f"{type(self.fleet).__name__}, where reach depends on the simulated time"
            )
        cohort = self.selection.cohort(round, probe or Everyone(len(self.selection.sizes)))
        if probe is not None:
            self.clustering.assign(round, cohort, probe)
            self.hosting.task_parts.rule.consult(round, cohort, probe)
            for piece in self.pieces:
                piece.inquire(round, cohort, probe)
        level, mark, drawn = self.assignment.level, self.hosting.models.mark, self.hosting.task_parts.drawn
        models, owner = self.clustering.models_of, self.clustering.owner
        epochs = self.local.epochs_of(len(cohort), generator(self.seed, "stragglers", round))
        return [
            drawn(Task(client, level(client, round), round, mark, lr, epochs=passes, model=k, owner=owner(client, k)))
            for client, passes in zip(cohort, epochs, strict=True)
            for k in models(client, round)
        ]

    def _train(self, tasks: Sequence[Task], probe: RoundProbe, follow: Follower) -> list[Report]:
        """Have the cohort train; return the reports of the accepted updates."""
        reports: list[Report] = []
        informed = [task for task in tasks if self._is_sent(task, probe)]
        sending = [task for task in informed if self._sends(task, probe)]
        lost = len(tasks) - len(sending)
        peaks: dict[int, float] = {}
        for done, reply in enumerate(self.clients.train(sending), start=lost + 1):
            accepted = self.server.receive(self._checked(reply), probe, self.selection.weight(reply.task.client))
            if accepted is None:
                self._miss(reply.task)
            else:
                peaks[accepted.report.client] = accepted.peak
                for piece in self.pieces:
                    piece.observe(accepted.update, accepted.index, accepted.report)
                self.clients.take(reply, accepted.update)
                reports.append(accepted.report)
            follow(accepted, done, len(tasks))
        for task in informed:
            self.server.downloads.note(task)
        if tasks:
            name_giants(tasks[0].round, peaks, self.server.ledger.called)
        return reports

    def _lose(self, task: Task, work: Work) -> None:
        self.ledger.lose(task.client, task.round, work)
        self._miss(task)

    def _miss(self, task: Task) -> None:
        for piece in self.pieces:
            piece.miss(task, task.client in self.ledger.late)

    def _checked(self, reply: Reply) -> Reply:
        """Return a reply, with a refusal if a number in the client's report is out of its range."""
        task = reply.task
        if reply.report is None:
            return reply
        samples, epochs = self.selection.sizes[task.client], task.epochs or self.local.epochs
        report, wrong = within_ranges(reply.report, samples, epochs, self.extras)
        return replace(reply, report=report, refusal=reply.refusal or wrong)

    def _is_sent(self, task: Task, probe: RoundProbe) -> bool:
        """Return whether a client is sent its part; a client that did not answer a required probe is lost."""
        if not self.server.aggregators.first.asks_losses or probe.initial_loss(task) is not None:
            return True
        self._lose(task, Work(0, 0.0))  # the aggregator's weight needs the initial loss
        return False

    def _sends(self, task: Task, probe: RoundProbe) -> bool:
        """Return whether a client will send its update in time; if not, charge its work and count it as lost.

        The training of a client that is lost is not simulated.
        """
        share = self.fleet.fails(task.client, task.round)
        if share is None and self.ledger.deadline is None:
            return True
        down_bytes = self.server.down_bytes(task, probe)
        flops = self.probing.forecast.training_flops(task.client, task.level, task.epochs)
        density = self.hosting.models.levels.flop_density(task.level, task.part)
        work = Work(down_bytes, flops * (1.0 if share is None else share), density=density)
        if share is None and self.ledger.in_time(task.client, task.round, work):
            return True
        self._lose(task, work)
        return False

    def _columns(self) -> dict[str, float]:
        columns: dict[str, float] = {}
        for piece in self.pieces:
            columns |= piece.columns()
        models, assigned = len(self.hosting.models), self.clustering.assigned
        if self.clustering.several(models):
            columns["cluster/count"] = float(models)
            columns |= {f"cluster/size/{model}": float(assigned.count(model)) for model in range(models)}
        return columns


def declared_extras(pieces: Sequence[Piece]) -> dict[str, Range]:
    """Return by name the ranges of the extra numbers that pieces read in reports.

    Raises:
        ConfigurationError: two pieces declare different ranges of one number.
    """
    extras: dict[str, Range] = {}
    for piece in pieces:
        for name, range in piece.extras().items():
            if extras.setdefault(name, range) != range:
                raise ConfigurationError(
                    f"Expected one range of extra {name} but {type(piece).__name__} declares {range}, "
                    f"and another piece declares {extras[name]}"
                )
    return extras


def _mean_loss(reports: Sequence[Report]) -> dict[str, float]:
    """Return the column of the mean training loss over samples, or no column if there are no reports."""
    samples = sum(report.samples for report in reports)
    return {"train/loss": sum(report.loss * report.samples for report in reports) / samples} if reports else {}
