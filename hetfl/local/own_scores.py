"""The job of an evaluation: the scores of a client's own sub-model on the client's test samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import report_of
from hetfl.local.outputs import Sums, evaluated
from hetfl.objectives.scores import beside
from hetfl.seeding import generator
from hetfl.tree import cast, moved, taken
from hetfl.types import Task


@dataclass(frozen=True)
class OwnScores:
    """Sums the objective's numbers (:meth:`~hetfl.objectives.Objective.sums`) over a client's test samples.

    The result's vector has the sums as :func:`unpack_sums` reads them.

    Attributes:
        batch_size: samples that are passed at a time.
        statistics: by level and number of the model, the sums of static norm layers; without them scores are NaN.
    """

    batch_size: int
    statistics: Mapping[tuple[str, int], Sums]

    def __call__(self, bench: Bench, task: Task) -> Result:
        """Return the sums of a task's client, whose outputs are restricted to its labels."""
        method, data = bench.problem.method, bench.data.client_data(task.client, "test")
        labels_K = bench.data.labels(task.client).to(bench.device)
        like, sums_M = next(iter(bench.models[task.model].values())), torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            net = evaluated(bench, task, self.statistics.get((task.level, task.model)))
            for batch in torch.arange(len(data.targets)).split(self.batch_size):
                # The seed of every other evaluation, so that a sample has the same transform in all.
                random = generator(bench.problem.seed, "evaluation")
                inputs = bench.data.transform.eval(taken(data.inputs, batch))
                inputs, targets = method.objective.batch(inputs, data.targets[batch], random)
                outputs, _ = method.predict_heads(net, moved(cast(inputs, like.dtype), bench.device))
                outputs = method.restrict(outputs, beside(labels_K, outputs))
                sums_M = sums_M + method.objective.sums(outputs, targets.to(outputs.device)).cpu().double().sum(0)
        return Result(task, report_of(bench, task, 0.0, 0), pack_sums(sums_M, like.dtype))


def pack_sums(sums_M: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 numbers (M,) in another dtype, shape (2 M,): rounded, then what rounding took away."""
    rounded_M = sums_M.to(dtype)
    return torch.cat([rounded_M, (sums_M - rounded_M).to(dtype)])


def unpack_sums(vector: Tensor) -> Tensor:
    """Return the numbers of :func:`pack_sums`, float64, shape (M,); of float32 pairs, to 48 bits."""
    rounded_M, rest_M = vector.double().chunk(2)
    return rounded_M + rest_M
