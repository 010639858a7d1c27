"""What a method overrides, and what holds if it does not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from lightning import LightningModule
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.data import FederatedDataModule
from hetfl.federation.models import GlobalModels
from hetfl.levels.level_set import LevelSet
from hetfl.local.losses import cross_entropies
from hetfl.local.method import LocalMethod
from hetfl.part import Part
from hetfl.parts import PartRule
from hetfl.piece import Piece
from hetfl.runs import trainers
from hetfl.types import ClientContext, Level

SUCCESSORS = {
    "index": "a part rule (hetfl.parts.PartRule) as the argument parts",
    "upload_index": "a method sent(part, level, round, client)",
}
"""What takes the place of methods that subclasses of the first edition defined."""


class Method(LightningModule, LocalMethod):
    """A method of federated learning: what a client sends, the local loss, the prediction.

    :class:`hetfl.FederatedModule` runs it; a method derives from that.

    Attributes:
        levels: what clients can afford.
        models: the global models.
        parts: says what a client holds of them.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {"a": Level("a")}
    default_aggregator: ClassVar[type[Aggregator]] = HolderMean
    levels: LevelSet
    models: GlobalModels
    parts: PartRule

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, successor in SUCCESSORS.items():
            if name in vars(cls):
                raise TypeError(f"Expected {successor} in place of {name} but got the latter in {cls.__name__}")

    @property
    def pieces(self) -> dict[str, Piece]:
        """Everything that keeps a state during a run, by name: the attributes that are pieces."""
        attributes = {**vars(self), **self._modules}
        return {name: value for name, value in attributes.items() if isinstance(value, Piece)}

    @property
    def net(self) -> nn.Module:
        """The global model; the first one if there are several."""
        return self.models[0]

    @property
    def data(self) -> FederatedDataModule:
        """The trainer's data module; another one than a federated one is refused."""
        return trainers.federated_data(self.trainer)

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return what a client sends of its part, and counts as a holder of: by default all but frozen parameters."""
        return self.models.unfrozen(self.parts.sent(part, level, round, client))

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (..., K) as a client with only some ``labels`` (..., K) uses them; by default as they are."""
        return logits

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss of outputs (N, K) and targets (N,); with leading client dimensions, one loss each."""
        return cross_entropies(self.restrict(outputs, ctx.labels.unsqueeze(-2)), targets)

    def predict(self, net: nn.Module, inputs: Any) -> Tensor:
        """Return the logits (N, K) that an evaluation uses; refuse several exits, which the loss cannot take."""
        return trainers.of_one_exit(net(inputs), type(self).__name__)

    def predict_heads(self, net: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same, and the logits of single heads by name, from one pass: by default there are none."""
        return self.predict(net, inputs), {}

    def _precision_context(self) -> AbstractContextManager[object]:
        """Return the trainer's precision (autocast, default dtype) as a context."""
        return self.trainer.precision_plugin.forward_context()
