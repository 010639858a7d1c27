"""What a method overrides, and what holds if it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lightning import LightningModule
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.federation.models import GlobalModels
from hetfl.layout import Index
from hetfl.levels.level_set import LevelSet
from hetfl.local.losses import cross_entropies
from hetfl.runs import trainers
from hetfl.types import ClientContext, Level


class Method(LightningModule):
    """A method of federated learning: what a sub-model is, what is sent, the local loss, the prediction.

    :class:`hetfl.FederatedModule` runs it; a method derives from that.

    Attributes:
        levels: what clients can afford.
        models: the global models.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {"a": Level("a")}
    default_aggregator: ClassVar[type[Aggregator]] = HolderMean
    levels: LevelSet
    models: GlobalModels

    def index(self, level: str, round: int) -> Index:
        """Return what a level's sub-model holds: by default the leading block of every tensor."""
        return self.levels.indices[level]

    def upload_index(self, client: int, level: str, round: int) -> Index:
        """Return what a client sends, and counts as a holder of: by default its index without frozen parameters."""
        return self.models.unfrozen(self.index(level, round))

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (..., K) as a client with only some ``labels`` (..., K) uses them; by default as they are."""
        return logits

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss of outputs (N, K) and targets (N,); with leading client dimensions, one loss each."""
        return cross_entropies(self.restrict(outputs, ctx.labels.unsqueeze(-2)), targets)

    def predict(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return the logits (N, K) that an evaluation uses; refuse several exits, which the loss cannot take."""
        return trainers.of_one_exit(net(inputs), type(self).__name__)

    def predict_heads(self, net: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same, and the logits of single heads by name, from one pass: by default there are none."""
        return self.predict(net, inputs), {}
