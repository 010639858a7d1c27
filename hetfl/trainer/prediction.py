"""Prediction with one level of one global model, with or without a federated data module."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.models.static_batch_norm import static_layers


class Prediction:
    """Predicts logits for ``trainer.predict``.

    Batches of a federated data module are raw samples, to which its transform is applied. Batches of any other loader
    are passed to the net unchanged. If a batch is a tuple or list, its first element is the input; a net whose input is
    a tuple therefore needs a tuple in a tuple.

    Args:
        submodel: returns the net of a level with the current values of a global model.
        levels: names of the levels, the largest first.
        models: the global models.

    Attributes:
        level: name of the level that predicts; None: the largest, which is the global model.
        model: number of the global model, if there are several.
    """

    def __init__(self, submodel: Callable[[str, int], nn.Module], levels: Sequence[str], models: Sized) -> None:
        self.submodel, self.levels, self.models = submodel, levels, models
        self.level: str | None = None
        self.model = 0

    def begin(self, gather: Callable[[], None] | None) -> None:
        """Build the net that predicts, with the current values of its global model.

        Args:
            gather: gathers statistics of static batch norm from clients; None: there are no clients.

        Raises:
            ConfigurationError: the level or model is unknown, or its static batch-norm statistics are missing.
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
                f"Expected static batch-norm statistics of the present model at level {level} but got none: pass "
                "predict a federated data module, whose clients gather them, or load a checkpoint of a validated round"
            )

    def inputs(self, batch: Any, data: FederatedDataModule | None) -> Any:
        """Return the inputs of a batch in the form that the net takes.

        Args:
            batch: a batch of a loader.
            data: the federated data module of the loader; None: another loader.
        """
        inputs = batch if isinstance(batch, Tensor | dict) else batch[0]
        return inputs if data is None else data.transform.eval(inputs)
