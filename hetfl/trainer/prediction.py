"""Prediction with one level of one global model, and without a data module too."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.models.static_batch_norm import static_layers


class Prediction:
    """Predicts logits for ``trainer.predict``.

    Batches of a federated data module are raw samples; those of any other loader are taken as the nets get them, and
    of a tuple the first element is, so inputs that are a tuple stand inside another one.

    Args:
        submodel: returns the net of a level with the present values of a global model.
        levels: names of the levels, the largest first.
        models: the global models.

    Attributes:
        level: name of the level that predicts; None: the largest, which is the global model.
        model: number of the global model, where there are several.
    """

    def __init__(self, submodel: Callable[[str, int], nn.Module], levels: Sequence[str], models: Sized) -> None:
        self.submodel, self.levels, self.models = submodel, levels, models
        self.level: str | None = None
        self.model = 0

    def begin(self, gather: Callable[[], None] | None) -> None:
        """Bring the net that predicts up to the present values of its global model.

        Args:
            gather: has clients gather statistics; None: there are no clients.

        Raises:
            ConfigurationError: there is no such level or model; or its static batch-norm statistics are not known.
        """
        level = self.levels[0] if self.level is None else self.level
        if level not in self.levels:
            raise ConfigurationError(f"Expected prediction.level in {self.levels} but got {level!r}")
        if not 0 <= self.model < len(self.models):
            raise ConfigurationError(f"Expected prediction.model below {len(self.models)} but got {self.model}")
        if gather is not None:
            gather()
        self.net = self.submodel(level, self.model)
        if not all(layer.ready for layer in static_layers(self.net).values()):
            raise ConfigurationError(
                f"Expected static batch-norm statistics of the present model at level {level} but got none: give "
                "predict a federated data module, whose clients gather them, or load a checkpoint of a validated round"
            )

    def inputs(self, batch: Any, data: FederatedDataModule | None) -> Any:
        """Return a batch as the net takes it.

        Args:
            batch: of a loader.
            data: the federated data module that it comes from; None: it comes from elsewhere.
        """
        inputs = batch if isinstance(batch, Tensor | dict) else batch[0]
        return inputs if data is None else data.transform.eval(inputs)
