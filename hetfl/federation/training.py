"""The round: a module whose one training step an epoch is one round of federated learning.

select, extract, train locally, compress, send, aggregate, server step; Lightning then validates the new model.
"""

from __future__ import annotations

from typing import cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl.aggregators import Aggregator
from hetfl.compression import ErrorFeedback
from hetfl.errors import ConfigurationError
from hetfl.federation.aggregating import ClusterAggregators
from hetfl.federation.callback import FederatedCallback
from hetfl.federation.clients import Lost, Upload, held_index
from hetfl.federation.exchange import Accepted, Exchange
from hetfl.federation.predicting import PredictingModule
from hetfl.federation.probing import RoundProbe
from hetfl.federation.server import server_step
from hetfl.fleet import Fleet, Work
from hetfl.local import LocalTask
from hetfl.seeding import generator
from hetfl.selection import Everyone, Selection
from hetfl.submodel import index_layout, only
from hetfl.types import Index, Report


class TrainingModule(PredictingModule):
    """Runs rounds. Subclasses provide the attributes below, and say what is sent (``upload_index``)."""

    selection: Selection
    uplink: ErrorFeedback
    aggregator: Aggregator
    aggregators: ClusterAggregators
    exchange: Exchange
    fleet: Fleet
    deadline: float | None

    def upload_index(self, client: int, level: str, round: int) -> Index:
        """Return what a client sends, and counts as a holder of."""
        raise NotImplementedError

    def tasks(self, round: int, lr: float, probe: RoundProbe | None = None) -> list[LocalTask]:
        """Select the cohort of a round, and say what each client does; without a probe nobody is asked anything.

        Clusters are then the last known ones.

        Raises:
            ConfigurationError: there is no probe, and who can be selected depends on the simulated time.
        """
        if probe is None and not self.fleet.always:
            raise ConfigurationError(
                "Expected a fleet whose clients are always within reach, to replay who took part, but got "
                f"{type(self.fleet).__name__}, where that depends on the simulated time"
            )
        cohort = self.selection.select(round, probe or Everyone(len(self.selection.sizes)))
        if probe is not None:
            self.clustering.assign(round, cohort, probe)
        level, cluster, mark = self.assignment.level, self.clustering.cluster_of, self.weights_mark
        epochs = self.local.epochs_of(len(cohort), generator(self.seed, "stragglers", round))
        return [
            LocalTask(k, level(k, round), round, mark, lr, e, cluster=cluster(k))
            for k, e in zip(cohort, epochs, strict=True)
        ]

    def probe(self, round: int) -> RoundProbe:
        """Return what policies may ask in a round that begins; the clock waits for somebody to be within reach."""
        there = self.ledger.wait(round)
        self.ledger.reachable = len(there)
        return self.probe_of(there, round)

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Run one round."""
        round = self.version  # Lightning's epoch, but in a second fit of a module, which goes on
        server, carrier = cast(list[LightningOptimizer], self.optimizers())
        lr = carrier.param_groups[0]["lr"]
        self.ledger.begin_round()
        self.uplink.begin_round(lr)
        probe = self.probe(round)
        tasks = self.tasks(round, lr, probe)
        if self.aggregator.asks_losses:
            probe.losses([task.client for task in tasks])
        self.ledger.begin_phase()
        self.aggregators.reset(self.cluster_tensors, self.shared)
        if self.local.penalty is not None and self.clustering.several:
            self.local.penalty.regroup(self.clustering.assigned)
        reports = self._train(tasks, probe)
        self._step(server, reports, round)
        self.version += 1
        threshold = self.uplink.compressor.threshold(lr)
        self.uplink.end_round()
        self.selection.end_round()
        if models := self.clustering.end_round(round):
            self.renew(models, server.optimizer, round)
        self.save_clusters()
        if self.lr_schedulers() is not None:
            carrier.optimizer.step()  # moves nothing; tells the schedule that this round's step has been
            self.lr_schedulers().step()  # type: ignore[union-attr]
        columns = {"lr": lr, **({} if threshold is None else {"threshold": threshold})}
        if self.clustering.several:
            columns |= self.clustering.columns()
        if reports:
            samples = sum(report.num_samples for report in reports)
            columns["train/loss"] = sum(report.loss * report.num_samples for report in reports) / samples
        self.log_columns(columns)

    def _step(self, server: LightningOptimizer, reports: list[Report], round: int) -> None:
        """Take the server's step; a round whose updates were all lost on the way moves nothing.

        Raises:
            ConfigurationError: updates arrived, and all of them were refused.
        """
        refused = self.ledger.round.refused
        if not reports and refused and self.clients.known:
            raise ConfigurationError(
                f"Expected an update that can be used in round {round} but all {refused} were refused (training "
                "diverged?): try a smaller learning rate or gradient_clip"
            )
        if not reports:
            rank_zero_warn("No update of a round arrived: all were late or failed, and the models stay as they are")
            server.step()  # no parameter has a gradient, so none moves; Lightning counts the round, and keeps it
            return
        penalty = self.local.penalty
        tensors, delta, holders = self.aggregators.compute(None if penalty is None else penalty.correct)
        server_step(server.optimizer, server.step, tensors, delta, holders)

    def _train(self, tasks: list[LocalTask], probe: RoundProbe) -> list[Report]:
        """Let the cohort train; return the reports of those whose updates were accepted."""
        reports: list[Report] = []
        callbacks = [each for each in self.trainer.callbacks if isinstance(each, FederatedCallback)]  # type: ignore[attr-defined]
        sending = [task for task in tasks if self._sends(task, probe)]
        lost = len(tasks) - len(sending)
        for done, arrived in enumerate(self.clients.train(sending), start=lost + 1):
            accepted = self.receive(arrived, probe)
            reports += [] if accepted is None else [accepted.report]
            for callback in callbacks:
                if accepted is not None:
                    callback.on_update(self.trainer, self, accepted.update, accepted.index, accepted.report)
                callback.on_client_end(self.trainer, self, done, len(tasks))
        return reports

    def _sends(self, task: LocalTask, probe: RoundProbe) -> bool:
        """Return whether a client gets as far as sending its update in time; if not, charge what it did.

        What it would have computed for nothing is not computed here either.
        """
        if self.aggregator.asks_losses and probe.initial_loss(task) is None:  # its update could not be weighted
            self.ledger.lose(task.client, task.round, Work(0, 0.0))
            return False
        share = self.fleet.fails(task.client, task.round)
        if share is None and self.deadline is None:
            return True
        down_bytes = self._down_bytes(task, probe)
        flops = self.forecast.training_flops(task.client, task.level, task.epochs)
        work = Work(down_bytes, flops * (1.0 if share is None else share))
        if share is None and self.ledger.in_time(task.client, task.round, work):
            return True
        self.ledger.lose(task.client, task.round, work)
        return False

    def _down_bytes(self, task: LocalTask, probe: RoundProbe | None) -> int:
        """Return the bytes that a client is sent before it trains."""
        entries, held = index_layout(self.index(task.level, task.round)).size, index_layout(held_index(self, task))
        return self.exchange.down_bytes(entries, held, probe is not None and probe.has_model(task))

    def receive(self, upload: Upload | Lost, probe: RoundProbe | None = None) -> Accepted | None:
        """Pass a client's update to the aggregator and the policies; None if it was lost or refused.

        Args:
            upload: what came of the client.
            probe: who was asked what before; None: nobody.
        """
        task = upload.task
        if isinstance(upload, Lost):
            rank_zero_warn(f"Round {task.round}: no update of client {task.client}: {upload.reason}")
            self.ledger.lose(task.client, task.round, Work(self._down_bytes(task, probe), 0.0))
            return None
        sent = self.upload_index(task.client, task.level, task.round)
        held = only(sent, self.parameter_names)
        accepted = self.exchange.receive(
            upload,
            index=self.index(task.level, task.round),
            sent=sent,
            held=held,
            flops=self.flops[task.level][1] * upload.num_passes,
            dtype=next(iter(self.tensors.values())).dtype,
            initial_loss=None if probe is None else probe.initial_loss(task),
            informed=probe is not None and probe.has_model(task),
            weight=self.selection.weight(task.client),
        )
        if accepted is not None:
            self.selection.observe(accepted.update, accepted.index, accepted.report)
            self.clustering.observe(accepted.update, accepted.index, accepted.report)
            if self.local.penalty is not None:
                self.local.penalty.accept(task.client, task.cluster, held, accepted.update)
            self.clients.take(upload, accepted.update)
        return accepted

    def memory(self, task: LocalTask) -> Tensor | None:
        """Return what the penalty keeps of a client, in the coordinates of its trained parameters; None for nothing."""
        if self.local.penalty is None:
            return None
        like = next(iter(self.tensors.values())).detach()
        return self.local.penalty.memory(
            task.client, only(self.index(task.level, task.round), self.parameter_names), like
        )

    def on_train_epoch_end(self) -> None:
        """Log the round's costs, an evaluation's included."""
        self.log_columns({**self.ledger.columns(), "residual/norm": self.uplink.norm()})
