"""The part of the module that Lightning calls to evaluate: every level, and the clients' own test data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.federation.clusters import ClusteringModule
from hetfl.federation.metrics import ClientAccuracy, LevelMetrics, weighted_mean
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import IntArray
from hetfl.local import LocalTask
from hetfl.run_folder import RunFolder
from hetfl.seeding import generator

Batch = tuple[Tensor, Tensor, Tensor]
"""Raw inputs, targets (N,), and the client that each sample belongs to (N,), -1 for nobody's."""

CLIENT_COLUMNS = ("client", "level", "train_samples", "test_samples", "accuracy", "own_accuracy")
"""Of ``clients.csv``: accuracies of the global model, and of the client's own sub-model, on its own test data."""


class EvaluatingModule(ClusteringModule):
    """Evaluates every level on the same batches, after its static batch-norm statistics have been gathered.

    With several global models a client's samples are evaluated by its cluster's, and nobody's by all of them. An
    accuracy is then the mean over clusters, weighted by their number of clients.

    Subclasses provide the attributes below, ``predict_heads`` and ``restrict``.
    """

    statistics_clients: int | None
    fleet: Fleet

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
        for logger in self.loggers if training and not self.trainer.sanity_checking else ():
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=self.last_round)

    def setup_evaluation(self, data: FederatedDataModule) -> None:
        """Make the metrics for a data set and fleet."""
        self.level_metrics = LevelMetrics(list(self.levels), data.num_classes)
        self.client_accuracy = ClientAccuracy(data.num_clients, data.labels, self.restrict)
        self.own_accuracy = ClientAccuracy(data.num_clients, data.labels, self.restrict)
        self._train_samples = [len(data.client_data(client)) for client in range(data.num_clients)]
        self._further_metrics: dict[int, LevelMetrics] = {}
        self._transform = data.transform

    def gather_statistics(self) -> None:
        """Ask clients within reach for static batch-norm sums of every level, unless the present model's are known."""
        self.notice_edits()
        if self.statistics.belong_to(self.weights_mark):
            return
        largest_first = sorted(self.levels, key=lambda level: -self.levels.sizes[level])
        clients = self.clients.there(self.ledger.wait(self.last_round))
        probe = self.probe_of(clients, self.last_round)
        self.clustering.settle(self.last_round, clients.tolist(), probe)
        self.save_clusters()
        # One order for all levels, so that mostly the same clients are asked and need the model once.
        order = torch.randperm(len(clients), generator=generator(self.seed, "statistics", self.version))
        self.statistics.gather(
            self.clients,
            {level: self.submodel(level) for level in largest_first},
            {
                (cluster, level): self._statistics_tasks(level, part, cluster)
                for cluster, part in self._by_cluster(clients[order.numpy()]).items()
                for level in largest_first
            },
            weights=self.weights_mark,
            forward_flops={level: flops[0] for level, flops in self.flops.items()},
            ledger=self.ledger,
            informed=[(k, cluster, self.assignment.level(k, self.last_round)) for k, cluster in probe.informed],
        )

    def _by_cluster(self, clients: IntArray) -> dict[int, IntArray]:
        """Return the clients of each cluster that has any, in their order; others stand in where none is in reach."""
        cluster_of = self._clusters()
        parts = {int(cluster): clients[cluster_of[clients] == cluster] for cluster in np.unique(cluster_of)}
        for cluster, part in parts.items():
            if not len(part):
                rank_zero_warn(f"No client of cluster {cluster} within reach: others gather its statistics")
        return {cluster: part if len(part) else clients for cluster, part in parts.items()}

    def _clusters(self) -> IntArray:
        """Return every client's cluster."""
        return np.array([self.clustering.cluster_of(client) for client in range(self.data.num_clients)], np.int64)

    def _statistics_tasks(self, level: str, order: IntArray, cluster: int) -> list[LocalTask]:
        """Return what the first of some clients that can afford a level do, or of those that come nearest to it."""
        names, positions = self.assignment.names, self.assignment.positions(self.last_round)
        affording = [number for number, own in enumerate(names) if self.levels.affords(own, level)]
        able = order[np.isin(positions[order], affording)]
        if not len(able):
            largest = max(np.unique(positions[order]).tolist(), key=lambda own: self.levels.sizes[names[own]])
            several = self.clustering.several
            some = f" of cluster {cluster}" if several else ""
            some += " within reach" if (not self.fleet.always if several else len(order) < len(positions)) else ""
            rank_zero_warn(
                f"No client{some} can run level {level}: clients of level {names[largest]} gather its statistics"
            )
            able = order[positions[order] == largest]
        mark, asked = self.weights_mark, np.sort(able[: self.statistics_clients]).tolist()
        return [LocalTask(client, level, self.last_round, mark, 0.0, cluster=cluster) for client in asked]

    def _begin(self) -> None:
        self.open_bench()
        # Lightning enters the trainer's precision for steps, not for this hook.
        with self.trainer.precision_plugin.forward_context():
            self.gather_statistics()
        self._cluster_of = torch.from_numpy(self._clusters())
        self._models = sorted(set(self._cluster_of.tolist()))
        for cluster in self._models[1:]:
            if cluster not in self._further_metrics:
                metrics = LevelMetrics(list(self.levels), self.data.num_classes)
                self._further_metrics[cluster] = metrics.to(self.device)
        self._present = -1

    def _nets_of(self, cluster: int) -> dict[str, nn.Module]:
        """Return the levels' nets with a cluster's model: the resident ones, loaded where they hold another's."""
        if cluster != self._present:
            self._nets = {level: self.submodel(level, cluster) for level in self.levels}
            self._present = cluster
        return self._nets

    def _logits(self, inputs: Tensor, levels: list[str], cluster: int) -> dict[str, Tensor]:
        """Return the logits of levels, the largest first, and behind them those of the largest's heads."""
        prepared, nets = self._transform.eval(inputs), self._nets_of(cluster)
        found = {level: self.predict_heads(nets[level], prepared) for level in levels}
        return {level: logits for level, (logits, _) in found.items()} | found[levels[0]][1]

    def _evaluate(self, batch: Batch, levels: list[str], measure: bool) -> dict[str, Tensor]:
        """Return the logits of each sample by its owner's cluster's model; ``measure`` those of nobody's by all models.

        Args:
            batch: the samples.
            levels: names, the largest first.
            measure: update the levels' metrics.
        """
        inputs, targets, owner = batch
        cluster_N = self._cluster_of.to(owner.device)[owner.clamp(min=0)]
        together: dict[str, Tensor] = {}
        for cluster in self._models:
            rows = ((cluster_N == cluster) | (owner < 0)).nonzero().squeeze(1)
            if not len(rows):
                continue
            all_of_them = len(rows) == len(targets)
            logits = self._logits(inputs if all_of_them else inputs[rows], levels, cluster)
            if measure:
                metrics = self._metrics_of(cluster)
                metrics.update(logits, targets if all_of_them else targets[rows])
            for name, values in logits.items():
                if all_of_them and name not in together:
                    together[name] = values
                else:
                    whole = together.setdefault(name, values.new_zeros(len(targets), *values.shape[1:]))
                    together[name] = whole.index_copy(0, rows, values)
        return together

    def _metrics_of(self, cluster: int) -> LevelMetrics:
        return self.level_metrics if cluster == self._models[0] else self._further_metrics[cluster]

    def _level_columns(self, stage: str) -> dict[str, Tensor]:
        """Return and forget what the levels' metrics measured, over all clusters."""
        parts = {}
        for cluster in self._models:
            if self._metrics_of(cluster).count:
                share = float((self._cluster_of == cluster).sum())
                parts[cluster] = (share, self._metrics_of(cluster).compute(stage))
        columns = weighted_mean(list(parts.values()))
        if self.clustering.several and stage == "val":
            columns |= {f"cluster/accuracy/{cluster}": found["val/accuracy"] for cluster, (_, found) in parts.items()}
        return columns

    def on_validation_epoch_start(self) -> None:
        """Bring all levels up to the present global model."""
        self._begin()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take a batch of the held-out part of the training data (loader 0) or of the clients' test data (loader 1)."""
        if dataloader_idx == 0:
            self._evaluate(batch, list(self.levels), measure=True)
        else:
            _, targets, owner = batch
            logits = self._evaluate(batch, [self.levels.largest], measure=False)
            self.client_accuracy.update(logits[self.levels.largest], targets, owner)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and ``local/*``."""
        self.log_columns({**self._level_columns("val"), **self.client_accuracy.compute()})

    def on_test_epoch_start(self) -> None:
        """Bring all levels up to the present global model."""
        self._begin()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a batch of the test set."""
        _, targets, owner = batch
        logits = self._evaluate(batch, list(self.levels), measure=True)
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
        cells = [range(len(has)), has, self._train_samples, tested, accuracy, own]
        several = self.clustering.several
        rows = list(zip(*cells, *([self._cluster_of.tolist()] if several else []), strict=True))
        for logger in self.loggers:
            if isinstance(logger, RunFolder):
                logger.write_table("clients", (*CLIENT_COLUMNS, *(["cluster"] if several else [])), rows)
        self.own_accuracy.reset()
        self.log_columns({**self._level_columns("test"), **self.client_accuracy.compute()})
