"""Local training of the global model on the server's samples, as a client would do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hetfl.data import ClientData, Samples, Transform
from hetfl.data.resident import ServerSamples
from hetfl.local.bench import Bench, LocalProblem
from hetfl.local.jobs import train
from hetfl.types import Task

SERVER = -1
"""Used in place of a client's id, for random choices."""


class Models(Protocol):
    """The global models, of which training reads the tensors."""

    @property
    def tensors(self) -> Sequence[Mapping[str, Tensor]]:
        """The tensors of every model by name."""
        ...

    @property
    def mark(self) -> int:
        """A number that changes whenever a value changes."""
        ...


@dataclass(frozen=True)
class _Source:
    """The server's samples in place of those of a client."""

    samples: ServerSamples
    outputs: int

    @property
    def transform(self) -> Transform:
        return self.samples.transform

    def client_data(self, client: int, split: Samples = "train") -> ClientData:
        return self.samples.samples

    def labels(self, client: int) -> Tensor:
        return torch.ones(self.outputs, dtype=torch.bool)


class ServerTraining:
    """Trains a global model on the server's samples; the model itself does not change.

    Args:
        problem: the local problem of the clients.
        samples: the server's samples.
        models: the global models.
        outputs: number K of outputs.
    """

    def __init__(self, problem: LocalProblem, samples: ServerSamples, models: Models, outputs: int) -> None:
        self.problem, self.models, self._source = problem, models, _Source(samples, outputs)
        self._bench: Bench | None = None

    def __call__(self, round: int, lr: float, epochs: int | None = None, model: int = 0) -> dict[str, Tensor]:
        """Return by name what training changes of a global model's tensors, at the largest level.

        Args:
            round: the round, for random choices.
            lr: the clients' learning rate γ_t.
            epochs: passes over the samples; None: as many as clients do.
            model: number of the global model.
        """
        level, part = next(iter(self.problem.levels.items()))
        if self._bench is None or self._bench.models is not self.models.tensors:  # a cluster got a model of its own
            self._bench = Bench(self.problem, self._source, self.models.tensors)
        task = Task(SERVER, level, round, self.models.mark, lr, epochs=epochs, model=model)
        delta_D = train(self._bench, task).vector
        frozen = part.layout.size - len(delta_D)  # these are the last entries of a part
        return part.layout.views(torch.cat([delta_D, delta_D.new_zeros(frozen)]))
