"""The part of the module that Lightning calls to evaluate: every level, and the clients' own test data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.federation.hosting import HostingModule
from hetfl.federation.ledger import Ledger
from hetfl.federation.metrics import ClientAccuracy, LevelMetrics
from hetfl.fleet import LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.local import LocalTask
from hetfl.run_folder import RunFolder
from hetfl.seeding import generator

Batch = tuple[Tensor, Tensor, Tensor]
"""Raw inputs, targets (N,), and the client that each sample belongs to (N,), -1 for nobody's."""

CLIENT_COLUMNS = ("client", "level", "train_samples", "test_samples", "accuracy", "own_accuracy")
"""Of ``clients.csv``: accuracies of the global model, and of the client's own sub-model, on its own test data."""


class EvaluatingModule(HostingModule):
    """Evaluates every level on the same batches, after its static batch-norm statistics have been gathered.

    Subclasses provide the attributes below, ``predict_heads`` and ``restrict``.
    """

    assignment: LevelAssignment
    ledger: Ledger
    statistics_clients: int | None
    flops: Mapping[str, tuple[float, float]]
    seed: int

    def predict_heads(self, net: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits that an evaluation uses, and those of single heads by name."""
        raise NotImplementedError

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits as a client that has only some labels uses them."""
        raise NotImplementedError

    def log_columns(self, columns: Mapping[str, Tensor | float]) -> None:
        """Log values at the present round; in float64, since Lightning would make float32 of Python numbers.

        In training loggers get them at once, not at the end of the epoch as by Lightning's own ``log``: that comes
        after the round's checkpoint, and a process killed between the two would leave a round without its row.
        """
        training = self.trainer.state.fn == "fit"
        values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in columns.items()}
        later = False if training else None  # None: if there is a logger
        self.log_dict(values, logger=later, on_step=False, on_epoch=True, batch_size=1, add_dataloader_idx=False)
        if self.loggers:
            self.log("step", float(self.last_round), on_step=False, on_epoch=True, batch_size=1)
        for logger in self.loggers if training else ():
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=self.last_round)

    def setup_evaluation(self, data: FederatedDataModule) -> None:
        """Make the metrics for a data set and fleet."""
        self.level_metrics = LevelMetrics(list(self.levels), data.num_classes)
        self.client_accuracy = ClientAccuracy(data.num_clients, data.labels, self.restrict)
        self.own_accuracy = ClientAccuracy(data.num_clients, data.labels, self.restrict)
        self._train_samples = [len(data.client_data(client)) for client in range(data.num_clients)]
        self._transform = data.transform

    def gather_statistics(self) -> None:
        """Ask clients within reach for static batch-norm sums of every level, unless the present model's are known."""
        if self.statistics.belong_to(self.weights_mark):
            return
        largest_first = sorted(self.levels, key=lambda level: -self.levels.sizes[level])
        clients = self.ledger.wait(self.last_round)
        # One order for all levels, so that mostly the same clients are asked and need the model once.
        order = torch.randperm(len(clients), generator=generator(self.seed, "statistics", self.version))
        self.statistics.gather(
            self.executor,
            {level: self.submodel(level) for level in largest_first},
            {level: self._statistics_tasks(level, clients[order.numpy()]) for level in largest_first},
            weights=self.weights_mark,
            forward_flops={level: flops[0] for level, flops in self.flops.items()},
            ledger=self.ledger,
        )

    def _statistics_tasks(self, level: str, order: IntArray) -> list[LocalTask]:
        """Return what the first of some clients that can afford a level do, or of those that come nearest to it."""
        names, positions = self.assignment.names, self.assignment.positions(self.last_round)
        affording = [number for number, own in enumerate(names) if self.levels.affords(own, level)]
        able = order[np.isin(positions[order], affording)]
        if not len(able):
            largest = max(np.unique(positions[order]).tolist(), key=lambda own: self.levels.sizes[names[own]])
            some = "" if len(order) == len(positions) else " within reach"
            rank_zero_warn(
                f"No client{some} can run level {level}: clients of level {names[largest]} gather its statistics"
            )
            able = order[positions[order] == largest]
        mark, asked = self.weights_mark, np.sort(able[: self.statistics_clients]).tolist()
        return [LocalTask(client, level, self.last_round, mark, 0.0) for client in asked]

    def _begin(self) -> None:
        self.open_bench()
        # Lightning enters the trainer's precision for steps, not for this hook.
        with self.trainer.precision_plugin.forward_context():
            self.gather_statistics()
        self._nets = {level: self.submodel(level) for level in self.levels}

    def _logits(self, inputs: Tensor, levels: list[str]) -> dict[str, Tensor]:
        """Return the logits of levels, the largest first, and behind them those of the largest's heads."""
        prepared = self._transform.eval(inputs)
        found = {level: self.predict_heads(self._nets[level], prepared) for level in levels}
        return {level: logits for level, (logits, _) in found.items()} | found[levels[0]][1]

    def on_validation_epoch_start(self) -> None:
        """Bring all levels up to the present global model."""
        self._begin()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take a batch of the held-out part of the training data (loader 0) or of the clients' test data (loader 1)."""
        inputs, targets, owner = batch
        if dataloader_idx == 0:
            self.level_metrics.update(self._logits(inputs, list(self.levels)), targets)
        else:
            logits = self._logits(inputs, [self.levels.largest])
            self.client_accuracy.update(logits[self.levels.largest], targets, owner)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and ``local/*``."""
        self.log_columns({**self.level_metrics.compute("val"), **self.client_accuracy.compute()})

    def on_test_epoch_start(self) -> None:
        """Bring all levels up to the present global model."""
        self._begin()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a batch of the test set."""
        inputs, targets, owner = batch
        logits = self._logits(inputs, list(self.levels))
        self.level_metrics.update(logits, targets)
        self.client_accuracy.update(logits[self.levels.largest], targets, owner)
        order, has = list(self.levels), self.assignment.levels(self.last_round)
        level_of = torch.tensor([order.index(level) for level in has], device=targets.device)
        stacked_LNK = torch.stack([logits[level] for level in order])
        own_NK = stacked_LNK[level_of[owner.clamp(min=0)], torch.arange(len(targets), device=targets.device)]
        self.own_accuracy.update(own_NK, targets, owner)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*`` and ``local/*``; write ``clients.csv``, one row per client."""
        has, tested = self.assignment.levels(self.last_round), self.client_accuracy.count_S.int().tolist()
        accuracy, own = self.client_accuracy.per_client(), self.own_accuracy.per_client()
        rows = list(zip(range(len(has)), has, self._train_samples, tested, accuracy, own, strict=True))
        for logger in self.loggers:
            if isinstance(logger, RunFolder):
                logger.write_table("clients", CLIENT_COLUMNS, rows)
        self.own_accuracy.reset()
        self.log_columns({**self.level_metrics.compute("test"), **self.client_accuracy.compute()})
