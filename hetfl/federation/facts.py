"""The facts of a federation, and how good a candidate for its global model is on the server's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hetfl.clustering import Clustering
from hetfl.compression import ErrorFeedback
from hetfl.data import FederatedDataModule
from hetfl.federation.hosting import Hosting
from hetfl.federation.models import GlobalModels
from hetfl.levels.level_set import LevelSet
from hetfl.local import ServerTraining
from hetfl.models.static_batch_norm import static_layers
from hetfl.objectives import LevelScores, Objective
from hetfl.parts import PartRule
from hetfl.piece import Facts, ServerData
from hetfl.seeding import generator
from hetfl.selection import Selection
from hetfl.submodel import parameters_of, state_of
from hetfl.tree import cast, moved

BATCH = 500
"""Samples in a batch."""


class Utility:
    """Measures candidates for the first global model on the server's samples.

    Static norm layers normalise by the statistics of each batch, so that no client is asked for statistics.

    Args:
        models: the global models.
        objective: has the loss and the headline score.
        predict: returns the outputs that an evaluation uses, for a net and inputs.
        data: the server's samples.
        size: number K of outputs.
    """

    def __init__(
        self,
        models: GlobalModels,
        objective: Objective,
        predict: Callable[[nn.Module, Any], Tensor],
        data: ServerData,
        size: int,
    ) -> None:
        self.models, self.objective, self.predict, self.data, self.size = models, objective, predict, data, size
        self._net: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """Return the headline score, turned so that larger is better, and the loss, of tensors by name.

        Tensors of the net that are not among them, such as frozen parameters and buffers, are the global model's.
        """
        like, level = self.models.like, self.models.levels.largest
        net = self._net = self._net or self.models.build(level)
        for name, tensor in state_of(net).items():
            tensor.copy_(tensors.get(name, self.models.tensors[0][name]))
        net.eval()
        for layer in static_layers(net).values():
            layer.train()
        scores = LevelScores([level], self.objective, self.size).to(like.device)
        random = generator(0, "utility")
        for positions in torch.arange(len(self.data)).split(BATCH):
            inputs, targets = self.objective.batch(*self.data.batch(positions), random)
            outputs = self.predict(net, moved(cast(inputs, like.dtype), like.device))
            scores.update({level: outputs}, targets.to(like.device))
        columns, headline = scores.compute("server"), self.objective.headline
        score = float(columns[headline.column("server")])
        return score if headline.higher_is_better else -score, float(columns["server/loss"])


class Federation(Protocol):
    """What is read of a module for the facts of its federation."""

    models: GlobalModels
    levels: LevelSet
    objective: Objective
    parts: PartRule
    clustering: Clustering
    selection: Selection
    hosting: Hosting
    uplink: ErrorFeedback
    seed: int

    def predict(self, net: nn.Module, inputs: Any) -> Tensor:
        """Return the outputs that an evaluation uses."""
        ...


def facts_of(of: Federation, data: FederatedDataModule, rounds: int | None) -> Facts:
    """Return the facts of a federation that are known before its first round.

    Args:
        of: the module.
        data: its data.
        rounds: number of rounds of the run; None: there are no rounds.
    """
    server, models, problem, outputs = data.server_data, of.models, of.hosting.problem, data.num_classes
    return Facts(
        sizes=data.sizes,
        seed=of.seed,
        levels=list(of.levels),
        rounds=rounds,
        parameters=parameters_of(models[0]),
        shared=models.shared,
        masks=of.parts.masks,
        frozen=models.frozen,
        sparse=of.uplink.compressor.sparse,
        apart=of.clustering.apart,
        server_data=server,
        client_names=data.client_names,
        lrs=problem.local.learning_rates(rounds or 0),
        cohort=of.selection.clients_per_round,
        utility=None if server is None else Utility(models, of.objective, of.predict, server, outputs),
        server_training=None if server is None else ServerTraining(problem, server, models, outputs),
    )
