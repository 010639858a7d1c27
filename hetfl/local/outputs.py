"""The job of an evaluation: the outputs of several levels' nets on a piece of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, as_tensor, nn

from hetfl.data.transform import Transform
from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import unpack_statistics
from hetfl.models.static_batch_norm import forget_unknown, load_statistics
from hetfl.objectives import Objective
from hetfl.seeding import generator
from hetfl.tree import Tree, length
from hetfl.types import Report, Task

PIECE = 32
"""Rows of a batch that a process computes at a time, at most; it is fixed, so that cores do not change any bits."""

NormSums = np.ndarray[Any, np.dtype[np.float64]]
"""The sums of a net's static norm layers as one vector (:func:`~hetfl.local.jobs.pack_statistics`)."""


@dataclass(frozen=True)
class Outputs:
    """Computes outputs in evaluation mode; the result's vector has those of each row side by side.

    Attributes:
        tasks: one per level, the largest first, with the part that represents it.
        statistics: by level, the sums of its static norm layers. The outputs of a level without them are NaN.
    """

    tasks: Sequence[Task]
    statistics: Mapping[str, NormSums]

    def __call__(self, bench: Bench, task: Task) -> Result:
        """Return the outputs on the inputs of a task."""
        assert task.inputs is not None
        predict, found = bench.problem.method.predict_heads, dict[str, Tensor]()
        heads: dict[str, Tensor] = {}
        with torch.no_grad():
            for of_level in self.tasks:
                net = evaluated(bench, of_level, self.statistics.get(of_level.level))
                found[of_level.level], others = predict(net, task.inputs)
                heads = heads or others
        rows = length(task.inputs)
        vector = torch.cat([outputs.reshape(rows, -1) for outputs in (found | heads).values()], dim=1).flatten()
        return Result(task, Report(task.client, task.level, 0, 0.0, model=task.model), vector)


def evaluated(bench: Bench, task: Task, sums_D: NormSums | None) -> nn.Module:
    """Return the resident net of a task in evaluation mode, with its client's personal tensors.

    Args:
        bench: the resident nets.
        task: the client, level and model.
        sums_D: of its static norm layers; None: unknown, and outputs are NaN.
    """
    resident = bench.resident(task)
    resident.start(beyond_D=bench.beyond(task))
    load_statistics(resident.net, None if sums_D is None else unpack_statistics(resident.net, as_tensor(sums_D)))
    forget_unknown(resident.net)
    return resident.net.eval()


def evaluation_batch(
    objective: Objective, transform: Transform, seed: int, inputs: Tree, targets: Tensor
) -> tuple[Tree, Tensor]:
    """Return raw samples in the form that nets and losses take in an evaluation.

    Random choices follow the same seed for every batch, so that a sample has the same transform in every evaluation.
    """
    return objective.batch(transform.eval(inputs), targets, generator(seed, "evaluation"))
