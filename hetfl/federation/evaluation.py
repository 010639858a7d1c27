"""Evaluation: every level on the same samples, single heads, and the clients' own test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hetfl.data import FederatedDataModule
from hetfl.federation.gathering import Gathering
from hetfl.federation.predicting import Predict, Predicting
from hetfl.local import Personal
from hetfl.local.outputs import NormSums, evaluation_batch
from hetfl.local.own_scores import OwnScores, scores_of
from hetfl.objectives import ClientScores, LevelScores, Objective, weighted_mean
from hetfl.objectives.scores import beside
from hetfl.tree import Tree, taken
from hetfl.types import Task

Batch = tuple[Tree, Tensor, Tensor]
"""Raw inputs, targets (N, ...), and the client that owns each sample (N,), -1 for samples of no client."""

CLIENT_COLUMNS = ("client", "level", "train_samples", "test_samples")
"""First columns of ``clients.csv``; then the global model's and the client's sub-model's scores on its test data."""

Restrict = Callable[[Tensor, Tensor], Tensor]


class Evaluation:
    """Evaluates every level on the same batches, after its static batch-norm statistics have been gathered.

    With several global models, the model of a client's cluster evaluates the client's samples, and all models evaluate
    samples of no client. A score is then the mean over models, weighted by their number of clients.

    Args:
        data: the data.
        gathering: gathers statistics.
        objective: has the loss and the metrics.
        predict: returns the outputs that an evaluation uses, and those of single heads by name.
        restrict: restricts outputs to the labels that a client has.
        personal: the clients' personal tensors.
    """

    def __init__(
        self,
        data: FederatedDataModule,
        gathering: Gathering,
        objective: Objective,
        predict: Predict,
        restrict: Restrict,
        personal: Personal,
    ) -> None:
        self.data, self.gathering, self.objective, self.restrict = data, gathering, objective, restrict
        self.hosting, self.models, self.levels = gathering.hosting, gathering.models, gathering.levels
        self.predicting = Predicting(self.hosting, predict, elsewhere=gathering.probing.clients.arrives)
        self.assignment, self.clustering = gathering.assignment, gathering.clustering
        self._scores: dict[int, LevelScores] = {}  # by model
        self.client_scores = ClientScores(data.num_clients, objective)
        self.own_scores = ClientScores(data.num_clients, objective)
        self.personal, self.personal_scores = personal, ClientScores(data.num_clients, objective)

    @property
    def several(self) -> bool:
        """Whether there are, or may be, several global models."""
        return self.clustering.several(len(self.models))

    def begin(self) -> bool:
        """Prepare all levels for the present global models; return whether clients were asked for statistics."""
        self.hosting.open(self.data)
        asked = self.gathering.run()
        self._model_N = torch.from_numpy(self.gathering.models_of())
        self._used = sorted(set(self._model_N.tolist()))
        self._labels_SK = self.data.resident.labels.to(self.models.like.device)
        self.predicting.begin()
        self._personal_measured = False
        return asked

    def measure_levels(self, batch: Batch) -> None:
        """Measure all levels on a batch."""
        self._evaluate(batch, list(self.levels), measure=True)

    def measure_clients(self, batch: Batch) -> None:
        """Measure the global model on the clients' own samples."""
        sums = self._evaluate(batch, [self.levels.largest], by_client=True)
        self.client_scores.update(sums[self.levels.largest], batch[2])

    def measure_all(self, batch: Batch) -> None:
        """Measure all levels, and on each client's samples the global model and the client's sub-model."""
        owner, order = batch[2], list(self.levels)
        sums = self._evaluate(batch, order, measure=True, by_client=True)
        self.client_scores.update(sums[self.levels.largest], owner)
        level_N = torch.from_numpy(self.assignment.positions(self.models.last_round)).to(owner.device)
        stacked_LNM = torch.stack([sums[level] for level in order])
        client_level_NM = stacked_LNM[level_N[owner.clamp(min=0)], torch.arange(len(owner), device=owner.device)]
        self.own_scores.update(client_level_NM, owner)

    def columns(self, stage: str) -> dict[str, Tensor]:
        """Return the measured scores as columns, and reset them."""
        parts, headline = {}, self.objective.headline
        for model in self._used:
            if self._scores_of(model).count:
                share = float((self._model_N == model).sum())
                parts[model] = (share, self._scores_of(model).compute(stage))
        columns = weighted_mean(list(parts.values()))
        if self.several and stage == "val":
            model_scores = {model: values[headline.column("val")] for model, (_, values) in parts.items()}
            columns |= {headline.cluster(model): score for model, score in model_scores.items()}
        columns |= self.client_scores.compute()
        if self.with_personal:
            columns |= {headline.personal: self.measured_personal().mean()}
        return columns

    @property
    def with_personal(self) -> bool:
        """Whether clients have sub-models of their own: parts, or tensors that this process holds (not on Flower)."""
        return self.hosting.task_parts.rule.personal or bool(self.personal.names and self.personal.store.clients())

    def measured_personal(self) -> ClientScores:
        """Return the score of every client's own sub-model, with its personal tensors, on the client's test samples.

        The scores are measured once in an evaluation.
        """
        if self._personal_measured:
            return self.personal_scores
        tested = [len(self.data.client_data(client, "test").targets) for client in range(self.data.num_clients)]
        round, mark, sums = self.models.last_round, self.models.mark, dict[tuple[str, int], NormSums]()
        for model in self._used:
            sums |= {(level, model): packed for level, packed in self.hosting.norm_sums(model).items()}
        places = enumerate(zip(self.assignment.levels(round), self._model_N.tolist(), strict=True))
        tasks = [
            Task(client, level, round, mark, model=model, owner=self.clustering.owner(client, model))
            for client, (level, model) in places
            if tested[client]
        ]
        self.personal_scores.reset()
        for result in self.predicting.run(OwnScores(self.data.eval_batch_size, sums), tasks, self._own):
            client = result.task.client
            self.personal_scores.add(client, scores_of(result), tested[client])
        self._personal_measured = True
        return self.personal_scores

    def _own(self, task: Task) -> Task:
        """Return a task with its client's part and personal tensors, just before it is run: parts may be large."""
        task = self.hosting.task_parts.drawn(task)
        return self.personal.added_to(task, self.hosting.task_parts.kept(task), self.models.like)

    def client_rows(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Return the columns and rows of ``clients.csv``, one row per client, and reset their scores."""
        levels, tested = self.assignment.levels(self.models.last_round), self.client_scores.count_S.int().tolist()
        cells: list[Sequence[object]] = [range(len(levels)), levels, self.data.sizes, tested]
        cells += [self.client_scores.per_client(), self.own_scores.per_client()]
        cells += [self._model_N.tolist()] if self.several else []
        self.own_scores.reset()
        headline = self.objective.headline
        columns = [*CLIENT_COLUMNS, headline.name, headline.own, *["cluster"] * self.several]
        if self.data.client_names is not None:
            columns.insert(1, "name")
            cells.insert(1, self.data.client_names)
        if self.with_personal:
            columns.append(f"personal_{headline.name}")
            cells.append(self.measured_personal().per_client())
        return columns, list(zip(*cells, strict=True))

    def _evaluate(
        self, batch: Batch, levels: list[str], measure: bool = False, by_client: bool = False
    ) -> dict[str, Tensor]:
        """Return by level the objective's sums of each sample (N, M), computed with its owner's model.

        Args:
            batch: the samples.
            levels: names, the largest first.
            measure: update the levels' scores; samples of no client are measured by all models.
            by_client: return the sums; otherwise an empty dict.
        """
        inputs, targets, owner = batch
        model_N = self._model_N.to(owner.device)[owner.clamp(min=0)]
        together: dict[str, Tensor] = {}
        for model in self._used:
            rows = ((model_N == model) | (owner < 0)).nonzero().squeeze(1)
            if not len(rows):
                continue
            whole = len(rows) == len(targets)
            some = batch if whole else (taken(inputs, rows), targets[rows], owner[rows])
            outputs, aims = self._outputs(some[0], some[1], levels, model)
            if measure:
                self._scores_of(model).update(outputs, aims)
            for name in levels if by_client else ():
                sums = self._sums(outputs[name], aims, some[2])
                if whole:
                    together[name] = sums
                else:
                    known = together.get(name, sums.new_zeros(len(owner), sums.shape[1]))
                    together[name] = known.index_copy(0, rows, sums)
        return together

    def _sums(self, outputs: Tensor, targets: Tensor, owner_N: Tensor) -> Tensor:
        """Return the objective's sums of samples, with outputs restricted to their owners' labels."""
        labels_NK = self._labels_SK[owner_N.clamp(min=0).to(outputs.device)]
        return self.objective.sums(self.restrict(outputs, beside(labels_NK, outputs)), targets)

    def _outputs(
        self, inputs: Tree, targets: Tensor, levels: list[str], model: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the outputs of levels, the largest first, then those of the largest level's heads; and the targets."""
        seed, transform = self.hosting.problem.seed, self.data.transform
        inputs, targets = evaluation_batch(self.objective, transform, seed, inputs, targets)
        return self.predicting.outputs(inputs, levels, model), targets

    def _scores_of(self, model: int) -> LevelScores:
        if model not in self._scores:
            scores = LevelScores(list(self.levels), self.objective, self.data.num_classes)
            self._scores[model] = scores.to(self.models.like.device)
        return self._scores[model]
