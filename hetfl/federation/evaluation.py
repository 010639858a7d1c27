"""Evaluation: every level on the same samples, single heads, and the clients' own test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.federation.gathering import Gathering
from hetfl.local import Personal
from hetfl.models.static_batch_norm import static_layers
from hetfl.objectives import ClientAccuracy, LevelMetrics, weighted_mean
from hetfl.tree import Tree, moved, taken
from hetfl.types import Task

Batch = tuple[Tree, Tensor, Tensor]
"""Raw inputs, targets (N,), and the client that each sample belongs to (N,), -1 for samples of no client."""

CLIENT_COLUMNS = ("client", "level", "train_samples", "test_samples", "accuracy", "own_accuracy")
"""Of ``clients.csv``: accuracies of the global model and of the client's own on its test data; names if there are."""

Predict = Callable[[nn.Module, Tree], tuple[Tensor, dict[str, Tensor]]]
Restrict = Callable[[Tensor, Tensor], Tensor]


class Evaluation:
    """Evaluates every level on the same batches, after its static batch-norm statistics have been gathered.

    With several global models a client's samples are evaluated by its cluster's, and samples of no client by all of
    them. An accuracy is then the mean over models, weighted by their number of clients.

    Args:
        data: the data.
        gathering: gathers statistics.
        predict: returns the logits that an evaluation uses, and those of single heads by name.
        restrict: returns logits as a client that has only some labels uses them.
        personal: what clients keep of their own.
    """

    def __init__(
        self, data: FederatedDataModule, gathering: Gathering, predict: Predict, restrict: Restrict, personal: Personal
    ) -> None:
        self.data, self.gathering, self.predict = data, gathering, predict
        self.hosting, self.models, self.levels = gathering.hosting, gathering.models, gathering.levels
        self.assignment, self.clustering = gathering.assignment, gathering.clustering
        self._metrics: dict[int, LevelMetrics] = {}  # by model
        self.client_accuracy = ClientAccuracy(data.num_clients, data.labels, restrict)
        self.own_accuracy = ClientAccuracy(data.num_clients, data.labels, restrict)
        self.personal, self.personal_accuracy = personal, ClientAccuracy(data.num_clients, data.labels, restrict)

    @property
    def several(self) -> bool:
        """Whether there are, or may be, several global models."""
        return self.clustering.several(len(self.models))

    def begin(self) -> bool:
        """Bring all levels up to the present global models; return whether clients were asked for statistics."""
        self.hosting.open(self.data)
        asked = self.gathering.run()
        self._model_N = torch.from_numpy(self.gathering.models_of())
        self._used = sorted(set(self._model_N.tolist()))
        self._nets: dict[str, nn.Module] = {}
        self._present, self._personal_measured = -1, False
        return asked

    def measure_levels(self, batch: Batch) -> dict[str, Tensor]:
        """Measure all levels on a batch; return the logits of each sample by its owner's model."""
        return self._evaluate(batch, list(self.levels), measure=True)

    def measure_clients(self, batch: Batch, logits: dict[str, Tensor] | None = None) -> None:
        """Measure the global model on the clients' own samples; logits that are known are not computed again."""
        _, targets, owner = batch
        largest = self.levels.largest
        logits = self._evaluate(batch, [largest], measure=False) if logits is None else logits
        self.client_accuracy.update(logits[largest], targets, owner)

    def measure_own_levels(self, batch: Batch, logits: dict[str, Tensor]) -> None:
        """Measure each client's own sub-model on its samples."""
        _, targets, owner = batch
        order, names = list(self.levels), self.assignment.levels(self.models.last_round)
        level_N = torch.tensor([order.index(name) for name in names], device=targets.device)
        stacked_LNK = torch.stack([logits[level] for level in order])
        own_NK = stacked_LNK[level_N[owner.clamp(min=0)], torch.arange(len(targets), device=targets.device)]
        self.own_accuracy.update(own_NK, targets, owner)

    def columns(self, stage: str) -> dict[str, Tensor]:
        """Return and forget what was measured."""
        parts = {}
        for model in self._used:
            if self._metrics_of(model).count:
                share = float((self._model_N == model).sum())
                parts[model] = (share, self._metrics_of(model).compute(stage))
        columns = weighted_mean(list(parts.values()))
        if self.several and stage == "val":
            columns |= {f"cluster/accuracy/{model}": found["val/accuracy"] for model, (_, found) in parts.items()}
        columns |= self.client_accuracy.compute()
        if self.with_personal:
            columns |= {"local/personal_accuracy": self.measured_personal().mean()}
        return columns

    @property
    def with_personal(self) -> bool:
        """Whether clients keep something of their own here: on Flower it is with the nodes."""
        return bool(self.personal.names and self.personal.store.clients())

    def measured_personal(self) -> ClientAccuracy:
        """Return the accuracy of every client's own sub-model, with what it keeps of its own, on its test samples.

        It is measured once in an evaluation.
        """
        if self._personal_measured:
            return self.personal_accuracy
        parts, round, mark = self.hosting.parts, self.models.last_round, self.models.mark
        self.personal_accuracy.reset()
        self._present, self._personal_measured = -1, True  # resident nets are loaded with clients' values
        for client, level in enumerate(self.assignment.levels(round)):
            samples = self.data.client_data(client, "test")
            model = int(self._model_N[client])
            task = parts.drawn(
                Task(client, level, round, mark, model=model, owner=self.clustering.owner(client, model))
            )
            kept = self.personal.of(task.owner, parts.kept(task), self.models.like)
            net = self.hosting.of_client(replace(task, personal=kept))
            for batch in torch.arange(len(samples.targets)).split(self.data.eval_batch_size):
                inputs = moved(self.data.transform.eval(taken(samples.inputs, batch)), self.models.like.device)
                logits, targets = self.predict(net, inputs)[0], samples.targets[batch]
                self.personal_accuracy.update(logits, targets, torch.full_like(targets, client))
        return self.personal_accuracy

    def client_rows(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Return and forget columns and rows of ``clients.csv``, one row per client."""
        levels, tested = self.assignment.levels(self.models.last_round), self.client_accuracy.count_S.int().tolist()
        cells: list[Sequence[object]] = [range(len(levels)), levels, self.data.sizes, tested]
        cells += [self.client_accuracy.per_client(), self.own_accuracy.per_client()]
        cells += [self._model_N.tolist()] if self.several else []
        self.own_accuracy.reset()
        columns = [*CLIENT_COLUMNS, *["cluster"] * self.several]
        if self.data.client_names is not None:
            columns.insert(1, "name")
            cells.insert(1, self.data.client_names)
        if self.with_personal:
            columns.append("personal_accuracy")
            cells.append(self.measured_personal().per_client())
        return columns, list(zip(*cells, strict=True))

    def _evaluate(self, batch: Batch, levels: list[str], measure: bool) -> dict[str, Tensor]:
        """Return the logits of each sample by its owner's model; ``measure`` samples of no client by all models.

        Args:
            batch: the samples.
            levels: names, the largest first.
            measure: update the levels' metrics.
        """
        inputs, targets, owner = batch
        model_N = self._model_N.to(owner.device)[owner.clamp(min=0)]
        together: dict[str, Tensor] = {}
        for model in self._used:
            rows = ((model_N == model) | (owner < 0)).nonzero().squeeze(1)
            if not len(rows):
                continue
            all_of_them = len(rows) == len(targets)
            logits = self._logits(inputs if all_of_them else taken(inputs, rows), levels, model)
            if measure:
                self._metrics_of(model).update(logits, targets if all_of_them else targets[rows])
            for name, values in logits.items():
                if all_of_them and name not in together:
                    together[name] = values
                else:
                    whole = together.setdefault(name, values.new_zeros(len(targets), *values.shape[1:]))
                    together[name] = whole.index_copy(0, rows, values)
        return together

    def _logits(self, inputs: Tree, levels: list[str], model: int) -> dict[str, Tensor]:
        """Return the logits of levels, the largest first, and behind them those of the largest's heads."""
        if model != self._present:  # resident nets, loaded where they hold another model's values
            self._nets = {level: self.hosting.submodel(level, model) for level in self.levels}
            for layer in (layer for net in self._nets.values() for layer in static_layers(net).values()):
                if not layer.ready:
                    layer.forget()
            self._present = model
        prepared = self.data.transform.eval(inputs)
        outputs = {level: self.predict(self._nets[level], prepared) for level in levels}
        return {level: logits for level, (logits, _) in outputs.items()} | outputs[levels[0]][1]

    def _metrics_of(self, model: int) -> LevelMetrics:
        if model not in self._metrics:
            metrics = LevelMetrics(list(self.levels), self.data.num_classes)
            self._metrics[model] = metrics.to(self.models.like.device)
        return self._metrics[model]
