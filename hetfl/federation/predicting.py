"""The part of the module that predicts: with one level of one global model, and without a data module too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.federation.evaluating import EvaluatingModule
from hetfl.federation.fingerprint import compare, of_models
from hetfl.federation.resuming import check_parts
from hetfl.models.static_batch_norm import static_layers

if TYPE_CHECKING:
    from hetfl.federation.module import FederatedModule

PREDICTED = ("version", "fingerprint", "clustering", "statistics")
"""What a checkpoint's state must hold to give its models back."""


def load_models(module: FederatedModule, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Get a module that has no data ready for a checkpoint's weights: its models, clusters and statistics.

    Args:
        module: the module.
        state: the federation's, in the checkpoint.
        weights: the state of Lightning's module, which Lightning loads next.

    Raises:
        ConfigurationError: the state is not whole, or is of another net or other levels; names what differs.
    """
    check_parts(state, PREDICTED)
    compare(state["fingerprint"], of_models(module))
    module.version = state["version"]
    module.statistics.load_state_dict(state["statistics"])
    module.clustering.load_assignments(state["clustering"])
    module.set_models(module.clustering.count)
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        module.double()
    module.close_bench()


class PredictingModule(EvaluatingModule):
    """Predicts logits for ``trainer.predict``.

    Batches of a federated data module are raw samples; those of any other loader are taken as the nets get them, and
    of a tuple the first element is.

    Attributes:
        predicted_level: name of the level that predicts; None: the largest, which is the global model.
        predicted_cluster: number of the global model, where there are several.
    """

    predicted_level: str | None = None
    predicted_cluster: int = 0

    def predict(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return the logits (N, K) that an evaluation uses."""
        raise NotImplementedError

    def on_predict_epoch_start(self) -> None:
        """Bring the level that predicts up to the present global model.

        Raises:
            ConfigurationError: there is no such level or model; or its static batch-norm statistics are not known.
        """
        level = self.levels.largest if self.predicted_level is None else self.predicted_level
        if level not in self.levels:
            raise ConfigurationError(f"Expected predicted_level in {list(self.levels)} but got {level!r}")
        if not 0 <= self.predicted_cluster <= len(self.other_nets):
            raise ConfigurationError(
                f"Expected predicted_cluster below {len(self.other_nets) + 1} but got {self.predicted_cluster}"
            )
        if self.has_data:
            self._begin()
        self._predictor = self.submodel(level, self.predicted_cluster)
        if not all(layer.ready for layer in static_layers(self._predictor).values()):
            raise ConfigurationError(
                f"Expected static batch-norm statistics of the present model at level {level} but got none: give "
                "predict a federated data module, whose clients gather them, or load a checkpoint of a validated round"
            )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits (N, K) of a batch."""
        inputs: Tensor = batch if isinstance(batch, Tensor) else batch[0]
        return self.predict(self._predictor, self.data.transform.eval(inputs) if self.has_data else inputs)

    def on_predict_epoch_end(self) -> None:
        """Let go of the net."""
        del self._predictor
