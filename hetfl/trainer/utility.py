"""How good a candidate for the global model is on the server's samples, and training on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hetfl.local.training import batches, cut
from hetfl.models.static_batch_norm import static_layers
from hetfl.objectives import LevelScores, Objective
from hetfl.piece import ServerData
from hetfl.seeding import generator
from hetfl.submodel import parameters_of, state_of
from hetfl.tree import Tree, cast, moved, on_device


class Models(Protocol):
    """What is needed of the global models."""

    @property
    def tensors(self) -> Sequence[Mapping[str, Tensor]]:
        """Every model's parameters and float buffers by name."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor with the models' dtype and device."""
        ...

    def build(self, level: str) -> nn.Module:
        """Return a new net of a level."""
        ...


BATCH = 500
"""Samples in a batch."""


class Utility:
    """Measures candidates for the first global model on the server's samples.

    Static norm layers normalise by the statistics of each batch, so that no client is asked for statistics.

    Args:
        models: the global models.
        level: name of the largest level.
        objective: has the loss and the headline score.
        predict: returns the outputs that an evaluation uses, for a net and inputs.
        data: the server's samples.
        size: number K of outputs.
    """

    def __init__(
        self,
        models: Models,
        level: str,
        objective: Objective,
        predict: Callable[[nn.Module, Any], Tensor],
        data: ServerData,
        size: int,
    ) -> None:
        self.models, self.level, self.data, self.size = models, level, data, size
        self.objective, self.predict = objective, predict
        self._net: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """Return the headline score, turned so that larger is better, and the loss, of tensors by name.

        Tensors of the net that are not among them, such as frozen parameters and buffers, are the global model's.
        """
        net = self._with(tensors).eval()
        for layer in static_layers(net).values():
            layer.train()
        scores = LevelScores([self.level], self.objective, self.size).to(self.models.like.device)
        random = generator(0, "utility")
        for positions in cut(torch.arange(len(self.data)), BATCH):
            inputs, targets = self._batch(positions, random)
            scores.update({self.level: self.predict(net, inputs)}, targets)
        columns, headline = scores.compute("server"), self.objective.headline
        score = float(columns[headline.column("server")])
        return score if headline.higher_is_better else -score, float(columns["server/loss"])

    def tuned(
        self, tensors: Mapping[str, Tensor], lr: float, epochs: int, batch_size: int, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Return trained parameters by name after epochs of plain SGD on the server's samples, from given values.

        Args:
            tensors: the values to begin with, by name; others are the global model's.
            lr: learning rate.
            epochs: passes over the samples.
            batch_size: of a step.
            random: draws the order of samples.
        """
        with torch.inference_mode(False), torch.enable_grad():
            net = self._with(tensors).train()
            parameters = parameters_of(net)
            optimizer = torch.optim.SGD(parameters.values(), lr=lr)
            for _ in range(epochs):
                for positions in batches(len(self.data), batch_size, random):
                    inputs, targets = self._batch(positions, random)
                    optimizer.zero_grad()
                    self.objective.loss(self.predict(net, inputs), targets).backward()
                    optimizer.step()
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def _with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a net with values of tensors by name; the others are the global model's."""
        self._net = self._net or self.models.build(self.level)
        with torch.no_grad():
            for name, tensor in state_of(self._net).items():
                tensor.copy_(tensors.get(name, self.models.tensors[0][name]))
        return self._net

    def _batch(self, positions: Tensor, random: torch.Generator) -> tuple[Tree, Tensor]:
        like = self.models.like
        inputs, targets = self.objective.batch(*self.data.batch(positions), random)
        return moved(cast(inputs, like.dtype), like.device), on_device(targets, like.device)
