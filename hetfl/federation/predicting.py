"""Outputs of all levels on the batches of an evaluation, computed by the executor's processes where it has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.federation.hosting import Hosting
from hetfl.local.executor import Job, Recall, Result
from hetfl.local.outputs import PIECE, Outputs
from hetfl.local.stacked.stacked import evenly
from hetfl.models.static_batch_norm import forget_unknown
from hetfl.tree import Tree, divided, length, shapes, taken
from hetfl.types import Task

Predict = Callable[[nn.Module, Tree], tuple[Tensor, dict[str, Tensor]]]


class Predicting:
    """Computes the outputs of levels' nets in evaluation mode.

    The rows of a batch are divided among the processes of the executor, :data:`~hetfl.local.outputs.PIECE` rows or
    fewer at a time. The pieces do not depend on the number of processes, so that outputs have the same bits for any.
    An executor without processes leaves the batch to this process. So does one whose results have no room for a row, or
    are less precise than the outputs.

    Args:
        hosting: the nets.
        predict: returns the outputs of a net, and those of single heads by name.
        elsewhere: whether the clients are on other machines: then this process works alone.
    """

    def __init__(self, hosting: Hosting, predict: Predict, elsewhere: bool) -> None:
        self.hosting, self.predict, self.elsewhere = hosting, predict, elsewhere
        self._rows: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        self.begin()

    def begin(self) -> None:
        """Drop what is known of the nets: the resident nets may have been loaded with other values."""
        self._nets: dict[str, nn.Module] = {}
        self._present = -1
        self._jobs: dict[tuple[Any, ...], Outputs] = {}

    def outputs(self, inputs: Tree, levels: Sequence[str], model: int) -> dict[str, Tensor]:
        """Return the outputs of levels on prepared inputs, then those of the heads of the first level.

        Args:
            inputs: of one batch.
            levels: names, the largest first.
            model: number of the global model.
        """
        executor, like = self.hosting.executor, self.hosting.models.like
        if self.elsewhere or not executor.room:
            return self._here(inputs, levels, model)
        row = self._row(inputs, levels, model)
        sizes = [one.numel() for one in row.values()]
        rows = min(PIECE, executor.room // max(1, sum(sizes)))
        if not rows or any(torch.promote_types(one.dtype, like.dtype) != like.dtype for one in row.values()):
            return self._here(inputs, levels, model)
        job = self._job(levels, model)
        pieces = divided(inputs, [len(piece) for piece in evenly(range(length(inputs)), rows)])
        results = executor.run(job, [replace(job.tasks[0], inputs=piece) for piece in pieces])
        found_NX = torch.cat([result.vector for result in results]).view(length(inputs), -1)
        parts = zip(row.items(), found_NX.split(sizes, dim=1), strict=True)
        return {name: part.reshape(-1, *one.shape[1:]).to(one.dtype).contiguous() for (name, one), part in parts}

    def run(self, job: Job, tasks: Sequence[Task], recall: Recall) -> list[Result]:
        """Run a job for clients: by the executor, or here if the clients are on other machines.

        Args:
            job: the work for each client; resident nets then have the clients' values.
            tasks: one per client.
            recall: adds the client's state to a task.
        """
        self.begin()
        bench = self.hosting.bench
        assert bench is not None
        with self.hosting.problem.precision_context():  # Lightning enters the trainer's precision only in steps
            if self.elsewhere:
                return [job(bench, recall(task)) for task in tasks]
            return list(self.hosting.executor.run(job, tasks, recall))

    def _row(self, inputs: Tree, levels: Sequence[str], model: int) -> dict[str, Tensor]:
        """Return the outputs on one row, for their shapes and dtypes."""
        first = taken(inputs, slice(0, 1))
        key = (*levels, shapes(first))
        if key not in self._rows:
            self._rows[key] = self._here(first, levels, model)
        return self._rows[key]

    def _job(self, levels: Sequence[str], model: int) -> Outputs:
        key = (*levels, model)
        if key not in self._jobs:
            assert self.hosting.bench is not None
            tasks = [self.hosting.bench.small(self.hosting.evaluated(level, model)) for level in levels]
            sums = self.hosting.norm_sums(model)
            self._jobs[key] = Outputs(tasks, {level: sums[level] for level in levels if level in sums})
        return self._jobs[key]

    def _here(self, inputs: Tree, levels: Sequence[str], model: int) -> dict[str, Tensor]:
        if model != self._present:  # the resident nets hold another model's values
            self._nets, self._present = {}, model
        for level in levels:
            if level not in self._nets:
                self._nets[level] = self.hosting.submodel(level, model)
                forget_unknown(self._nets[level])
        predictions = {level: self.predict(self._nets[level], inputs) for level in levels}
        heads = predictions[levels[0]][1]
        return {level: outputs for level, (outputs, _) in predictions.items()} | heads
