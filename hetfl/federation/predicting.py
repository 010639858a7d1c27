"""Outputs of all levels on the batches of an evaluation, computed by the executor's processes where it has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from hetfl.federation.hosting import Hosting
from hetfl.local.outputs import PIECE, Outputs, packed
from hetfl.models.static_batch_norm import forget_unknown
from hetfl.tree import Tree, divided, length, taken

Predict = Callable[[nn.Module, Tree], tuple[Tensor, dict[str, Tensor]]]


class Predicting:
    """Computes the outputs of levels' nets in evaluation mode.

    The rows of a batch are divided among the processes of the executor, :data:`~hetfl.local.outputs.PIECE` rows or
    fewer at a time. The pieces depend on the net alone, so that outputs have the same bits for any number of processes.
    An executor without processes, or one whose results have no room for a row, leaves the batch to this process.

    Args:
        hosting: the nets.
        predict: returns the outputs of a net, and those of single heads by name.
        elsewhere: whether the clients are on other machines: then this process works alone.
    """

    def __init__(self, hosting: Hosting, predict: Predict, elsewhere: bool) -> None:
        self.hosting, self.predict, self.elsewhere = hosting, predict, elsewhere
        self._shapes: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
        self.begin()

    def begin(self) -> None:
        """Drop what is known of the nets: the resident nets may have been loaded with other values."""
        self._nets: dict[str, nn.Module] = {}
        self._present = -1

    def outputs(self, inputs: Tree, levels: Sequence[str], model: int) -> dict[str, Tensor]:
        """Return the outputs of levels on prepared inputs, then those of the heads of the first level.

        Args:
            inputs: of one batch.
            levels: names, the largest first.
            model: number of the global model.
        """
        executor = self.hosting.executor
        if self.elsewhere or not executor.room:
            return self._here(inputs, levels, model)
        shapes = self._shapes.get(key := tuple(levels))
        if shapes is None:
            first = self._here(taken(inputs, slice(0, 1)), levels, model)
            shapes = self._shapes[key] = {name: tuple(outputs.shape[1:]) for name, outputs in first.items()}
        sizes = [prod(shape) for shape in shapes.values()]
        rows = min(PIECE, executor.room // max(1, sum(sizes)))
        if not rows:
            return self._here(inputs, levels, model)
        job = self._job_of(levels, model)
        pieces = divided(inputs, _even(length(inputs), rows))
        results = executor.run(job, [replace(job.tasks[0], inputs=piece) for piece in pieces])
        found_NX = torch.cat([result.vector for result in results]).view(length(inputs), -1)
        parts = found_NX.split(sizes, dim=1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def _job_of(self, levels: Sequence[str], model: int) -> Outputs:
        tasks = [self.hosting.evaluated(level, model) for level in levels]
        statistics = self.hosting.statistics
        known = statistics.of_model(model) if statistics.current else {}
        return Outputs(tasks, {level: packed(sums) for level, sums in known.items() if level in levels})

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


def _even(count: int, most: int) -> list[int]:
    """Return the sizes of parts of at most ``most`` rows, which differ by at most one."""
    parts = -(-count // most)
    size, larger = divmod(count, parts)
    return [size + (part < larger) for part in range(parts)]
