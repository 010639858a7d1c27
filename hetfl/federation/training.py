"""The round: a module whose one training step an epoch is one round of federated learning.

select, extract, train locally, compress, send, aggregate, server step; Lightning then validates the new model.
"""

from __future__ import annotations

from typing import cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from hetfl import wire
from hetfl.aggregators import Aggregator
from hetfl.compression import ErrorFeedback
from hetfl.errors import ConfigurationError
from hetfl.federation.callback import FederatedCallback
from hetfl.federation.evaluating import EvaluatingModule
from hetfl.federation.exchange import Accepted, Exchange
from hetfl.federation.probing import RoundProbe
from hetfl.federation.server import server_step
from hetfl.local import LocalResult, LocalTask
from hetfl.local.jobs import train
from hetfl.seeding import generator
from hetfl.selection import Everyone, Probe, Selection
from hetfl.types import Index, Report


class TrainingModule(EvaluatingModule):
    """Runs rounds. Subclasses provide the attributes below, and say what is sent (``upload_index``)."""

    selection: Selection
    uplink: ErrorFeedback
    aggregator: Aggregator
    exchange: Exchange

    def upload_index(self, client: int, level: str, round: int) -> Index:
        """Return what a client sends, and counts as a holder of."""
        raise NotImplementedError

    def tasks(self, round: int, lr: float, probe: Probe | None = None) -> list[LocalTask]:
        """Select the cohort of a round, and say what each client does; without a probe nobody is asked anything."""
        cohort = self.selection.select(round, probe or Everyone(len(self.selection.sizes)))
        levels, mark = self.assignment.levels(round), self.weights_mark
        epochs = self.local.epochs_of(len(cohort), generator(self.seed, "stragglers", round))
        return [LocalTask(k, levels[k], round, mark, lr, e) for k, e in zip(cohort, epochs, strict=True)]

    def probe(self, round: int) -> RoundProbe:
        """Return what policies may ask in a round that begins."""
        levels, mark = self.assignment.levels(round), self.weights_mark
        return RoundProbe(
            range(self.data.num_clients),
            lambda client: LocalTask(client, levels[client], round, mark),
            self.executor,
            {level: wire.dense_size(size) for level, size in self.levels.sizes.items()},
            {level: forward for level, (forward, _) in self.flops.items()},
            self.ledger,
        )

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Run one round."""
        round = self.current_epoch
        server, carrier = cast(list[LightningOptimizer], self.optimizers())
        lr = carrier.param_groups[0]["lr"]
        self.ledger.begin_round()
        probe = self.probe(round)
        tasks = self.tasks(round, lr, probe)
        if self.aggregator.asks_losses:
            probe.losses([task.client for task in tasks])
        self.ledger.begin_phase()
        self.aggregator.reset(self.tensors)
        reports = self._train(tasks, probe)
        if not reports:
            raise ConfigurationError(
                f"Expected an update that can be used in round {round} but all {len(tasks)} were refused (training "
                "diverged?): try a smaller learning rate or gradient_clip"
            )
        delta, holders = self.aggregator.compute()
        if self.local.penalty is not None:
            delta = self.local.penalty.correct(delta, holders)
        server_step(server.optimizer, server.step, self.tensors, delta, holders)
        self.version += 1
        threshold = self.uplink.compressor.threshold(lr)
        self.uplink.end_round()
        self.selection.end_round()
        if self.lr_schedulers() is not None:
            carrier.optimizer.step()  # moves nothing; tells the schedule that this round's step has been
            self.lr_schedulers().step()  # type: ignore[union-attr]
        samples = sum(report.num_samples for report in reports)
        loss = sum(report.loss * report.num_samples for report in reports) / samples
        self.log_columns({"train/loss": loss, "lr": lr, **({} if threshold is None else {"threshold": threshold})})

    def _train(self, tasks: list[LocalTask], probe: RoundProbe) -> list[Report]:
        """Let the cohort train; return the reports of those whose updates were accepted."""
        reports: list[Report] = []
        callbacks = [each for each in self.trainer.callbacks if isinstance(each, FederatedCallback)]  # type: ignore[attr-defined]
        for done, result in enumerate(self.executor.run(train, tasks, self.memory), start=1):
            accepted = self.receive(result, probe)
            reports += [] if accepted is None else [accepted.report]
            for callback in callbacks:
                if accepted is not None:
                    callback.on_update(self.trainer, self, accepted.update, accepted.index, accepted.report)
                callback.on_client_end(self.trainer, self, done, len(tasks))
        return reports

    def receive(self, result: LocalResult, probe: RoundProbe | None = None) -> Accepted | None:
        """Pass a client's delta through the uplink to the aggregator and the policies; None if it was refused.

        Args:
            result: what local training returned.
            probe: who was asked what before; None: nobody.
        """
        task = result.task
        accepted = self.exchange.receive(
            result,
            index=self.index(task.level, task.round),
            upload=self.upload_index(task.client, task.level, task.round),
            trained=self.parameter_names,
            flops=self.flops[task.level][1] * result.num_passes,
            initial_loss=None if probe is None else probe.initial_loss(task.client),
            informed=probe is not None and task.client in probe.informed,
        )
        if accepted is not None:
            self.selection.observe(accepted.update, accepted.index, accepted.report)
            if self.local.penalty is not None:
                self.local.penalty.accept(task.client, task.round, self._trained(accepted.index), accepted.update)
        return accepted

    def memory(self, task: LocalTask) -> Tensor | None:
        """Return what the penalty keeps of a client, in the coordinates of its trained parameters; None for nothing."""
        if self.local.penalty is None:
            return None
        like = next(iter(self.tensors.values())).detach()
        return self.local.penalty.memory(task.client, self._trained(self.index(task.level, task.round)), like)

    def _trained(self, index: Index) -> Index:
        return {name: entry for name, entry in index.items() if name in self.parameter_names}

    def on_train_epoch_end(self) -> None:
        """Log the round's costs, an evaluation's included."""
        self.log_columns({**self.ledger.columns(), "residual/norm": self.uplink.norm()})
