"""The job of an evaluation: the scores of a client's own sub-model on the client's test samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import report_of
from hetfl.local.outputs import NormSums, evaluated, evaluation_batch
from hetfl.objectives.scores import beside
from hetfl.tree import cast, moved, taken
from hetfl.types import Task


@dataclass(frozen=True)
class OwnScores:
    """Adds up the objective's numbers (:meth:`~hetfl.objectives.Objective.sums`) over a client's test samples.

    The result's report has them as extras, which :func:`scores_of` reads: they are float64, and may be more than a
    worker's results have room for.

    Attributes:
        batch_size: samples that are passed at a time.
        statistics: by level and number of the model, the sums of static norm layers; without them scores are NaN.
    """

    batch_size: int
    statistics: Mapping[tuple[str, int], NormSums]

    def __call__(self, bench: Bench, task: Task) -> Result:
        """Return the numbers of a task's client, whose outputs are restricted to its labels."""
        problem, data = bench.problem, bench.data.client_data(task.client, "test")
        method, dtype = problem.method, next(iter(bench.models[task.model].values())).dtype
        labels_K, numbers_M = bench.data.labels(task.client).to(bench.device), torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            net = evaluated(bench, task, self.statistics.get((task.level, task.model)))
            for batch in torch.arange(len(data.targets)).split(self.batch_size):
                raw = taken(data.inputs, batch), data.targets[batch]
                inputs, targets = evaluation_batch(method.objective, bench.data.transform, problem.seed, *raw)
                outputs, _ = method.predict_heads(net, moved(cast(inputs, dtype), bench.device))
                outputs = method.restrict(outputs, beside(labels_K, outputs))
                numbers_M = numbers_M + method.objective.sums(outputs, targets.to(outputs.device)).cpu().double().sum(0)
        extras = {f"{m}": number for m, number in enumerate(numbers_M.tolist())}
        return Result(task, replace(report_of(bench, task, 0.0, 0), extras=extras), torch.empty(0))


def scores_of(result: Result) -> Tensor:
    """Return the numbers of a result of :class:`OwnScores`, float64, shape (M,)."""
    return torch.tensor(list(result.report.extras.values()), dtype=torch.float64)
