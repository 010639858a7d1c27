"""The methods that a federated method may override, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from lightning import LightningModule
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.arguments import keep_arguments
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation.hosting import Hosting
from hetfl.global_models import GlobalModels
from hetfl.levels.budgets import Axis
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
"""Methods that subclasses of the first edition defined, and their replacements."""


class Method(LightningModule, LocalMethod):
    """A method of federated learning: what a client sends, the local loss, the prediction.

    :class:`hetfl.FederatedModule` derives from this class and runs the rounds; a user's method derives from
    :class:`hetfl.FederatedModule`.

    Attributes:
        levels: the levels that clients can afford.
        models: the global models.
        parts: the rule that chooses which part of them a client holds.
        hosting: the nets of this process.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {"a": Level("a")}
    default_aggregator: ClassVar[type[Aggregator]] = HolderMean
    without_labels: ClassVar[str] = ""
    """End of the message that refuses an objective without labels: how to switch the method's label rules off."""
    levels: LevelSet
    models: GlobalModels
    parts: PartRule
    hosting: Hosting

    @property
    def axis(self) -> Axis:
        """What the method's levels scale: ``depth`` if its largest default level has a depth, else ``width``."""
        return "width" if next(iter(self.default_levels.values())).depth is None else "depth"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_arguments(cls)
        for name, successor in SUCCESSORS.items():
            if name in vars(cls):
                raise TypeError(f"Expected {successor} in place of {name} but got the latter in {cls.__name__}")

    @property
    def pieces(self) -> dict[str, Piece]:
        """All objects with a state during a run, by name: public attributes that are pieces, and their members."""
        attributes = {**vars(self), **self._modules}
        pieces = {name: each for name, each in attributes.items() if isinstance(each, Piece) and name[0] != "_"}
        return pieces | {f"{name}.{key}": each for name, of in pieces.items() for key, each in of.members().items()}

    @property
    def net(self) -> nn.Module:
        """The global model; the first one if there are several."""
        return self.models[0]

    @property
    def data(self) -> FederatedDataModule:
        """The trainer's data module; a data module that is not federated is refused."""
        return requirements.federated_data(self.trainer)

    def submodel(self, level: str, model: int = 0) -> nn.Module:
        """Return a level's net with the present values of a global model; see :meth:`Hosting.submodel`."""
        return self.hosting.submodel(level, model)

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return the entries of its part that a client sends and counts as a holder of.

        By default these are the entries that the part rule sends, without frozen parameters.

        Args:
            part: the client's part.
            level: the client's level.
            round: the round.
            client: the client's id.
        """
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

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the objective's loss of outputs and targets; with leading client dimensions, one loss each.

        :meth:`restrict` first restricts the outputs to the client's labels.
        """
        return self.objective.loss(self.restrict(outputs, beside(ctx.labels, outputs)), targets)

    @property
    def needs_labels(self) -> bool:
        """Whether the method needs an objective with labels: by default, whether it overrides :meth:`restrict`."""
        return type(self).restrict is not LocalMethod.restrict

    def predict(self, net: nn.Module, inputs: Any) -> Tensor:
        """Return the outputs that an evaluation uses.

        Raises:
            ConfigurationError: the net returns the outputs of several exits, which the default loss cannot take.
        """
        requirements.check_one_exit(net, type(self).__name__)
        outputs: Tensor = net(inputs)
        return outputs

    def predict_heads(self, net: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return :meth:`predict`'s outputs, and the outputs of single heads by name, from one forward pass.

        By default there are no heads. Evaluations may call it in worker processes, on some rows of a batch: the outputs
        of a row must not depend on other rows, or on attributes that change during a run.
        """
        return self.predict(net, inputs), {}

    def _precision_context(self) -> AbstractContextManager[object]:
        """Return the trainer's precision (autocast, default dtype) as a context."""
        return self.trainer.precision_plugin.forward_context()
