"""What a method overrides, and what holds if it does not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from lightning import LightningModule
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation.models import GlobalModels
from hetfl.levels.level_set import LevelSet
from hetfl.local.method import LocalMethod
from hetfl.objectives import Objective
from hetfl.objectives.scores import beside
from hetfl.part import Part
from hetfl.parts import PartRule
from hetfl.piece import Piece
from hetfl.trainer import requirements
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
    without_labels: ClassVar[str] = ""
    """What the message adds that refuses an objective without labels: how to do without these rules."""
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
        """Everything that keeps a state during a run, by name: public attributes that are pieces, and their members."""
        attributes = {**vars(self), **self._modules}
        pieces = {name: each for name, each in attributes.items() if isinstance(each, Piece) and name[0] != "_"}
        return pieces | {f"{name}.{key}": each for name, of in pieces.items() for key, each in of.members().items()}

    @property
    def net(self) -> nn.Module:
        """The global model; the first one if there are several."""
        return self.models[0]

    @property
    def data(self) -> FederatedDataModule:
        """The trainer's data module; another one than a federated one is refused."""
        return requirements.federated_data(self.trainer)

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return what a client sends of its part, and counts as a holder of: by default all but frozen parameters."""
        return self.models.unfrozen(self.parts.sent(part, level, round, client))

    def check_objective(self, objective: Objective) -> None:
        """Refuse an objective that the method cannot learn.

        Raises:
            ConfigurationError: the method has rules about labels, and the objective has none.
        """
        if self.needs_labels and not objective.owns_labels:
            raise ConfigurationError(
                f"Expected an objective with labels for {type(self).__name__}, which has rules about them, but got "
                f"{type(objective).__name__}{self.without_labels}"
            )

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (..., K) as a client with only some ``labels`` (..., K) uses them; by default as they are.

        A method that overrides it needs an objective whose outputs are labels.
        """
        return logits

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the objective's loss of outputs and targets; with leading client dimensions, one loss each.

        Outputs are restricted to the client's labels before, as :meth:`restrict` says.
        """
        return self.objective.loss(self.restrict(outputs, beside(ctx.labels, outputs)), targets)

    @property
    def needs_labels(self) -> bool:
        """Whether the method has rules about labels, which the objective must have: by default :meth:`restrict`."""
        return type(self).restrict is not Method.restrict

    def predict(self, net: nn.Module, inputs: Any) -> Tensor:
        """Return the outputs that an evaluation uses; refuse several exits, which the loss cannot take."""
        requirements.check_one_exit(net, type(self).__name__)
        outputs: Tensor = net(inputs)
        return outputs

    def predict_heads(self, net: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same, and the logits of single heads by name, from one pass: by default there are none."""
        return self.predict(net, inputs), {}

    def _precision_context(self) -> AbstractContextManager[object]:
        """Return the trainer's precision (autocast, default dtype) as a context."""
        return self.trainer.precision_plugin.forward_context()
