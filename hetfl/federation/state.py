"""The federation's state in a checkpoint: the state of every piece, and a fingerprint of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from hetfl.clustering import Clustering
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation.hosting import Hosting
from hetfl.global_models import MakeOptimizer
from hetfl.piece import Piece
from hetfl.runs.content import check_state
from hetfl.trainer.fingerprint import agree, fingerprint, of_models
from hetfl.trainer.resuming import check_complete, check_optimizers_fit, load_pieces, rescale, weights_only

KEY = "hetfl"
"""Key of the federation's state in a checkpoint."""
ENTRIES = ("version", "models", "shared", "fingerprint", "learning_rates", "pieces")
OF_CLIENTS = ("partition", "sizes of clients")
"""Entries that must also agree if something is stored by client."""
FOR_EVALUATION = ("net", "levels")
"""Fingerprint entries that must agree when a checkpoint with one model is only evaluated: the data may differ."""


class RunState:
    """The state of a run in its checkpoints.

    Args:
        hosting: has the global models; Lightning saves their values.
        clustering: as configured.
        server: makes the server's optimizer.
        method: returns the method and its settings as short text.
    """

    def __init__(
        self, hosting: Hosting, clustering: Clustering, server: MakeOptimizer, method: Callable[[], str]
    ) -> None:
        self.hosting, self.models, self.clustering, self.method = hosting, hosting.models, clustering, method
        self.optimizers = {"server": server, "clients": hosting.problem.local.optimizer}
        self.forget()

    def forget(self) -> None:
        """Forget the fingerprint, which is computed once per run and not at every checkpoint."""
        self._fingerprint: dict[str, str] = {}

    def fingerprint(self, data: FederatedDataModule, pieces: Mapping[str, Piece]) -> dict[str, str]:
        """Return by name the settings that the state depends on, as short text that can be compared and shown."""
        if not self._fingerprint:
            problem = self.hosting.problem
            run_entries = fingerprint(self.models[0], problem.local, self.optimizers["server"], data, pieces)
            method_entries = {"seed": str(problem.seed), "method": self.method()}
            model_entries = of_models(self.models.tensors[0], self.models.levels)
            self._fingerprint = {**method_entries, **model_entries, **run_entries}
        return self._fingerprint

    def saved(
        self,
        checkpoint: Mapping[str, Any],
        data: FederatedDataModule,
        pieces: Mapping[str, Piece],
        plugin: CheckpointIO,
    ) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain types and tensors.

        A checkpoint of weights only, as ``ModelCheckpoint(save_weights_only=True)`` asks for, gets only the state that
        an evaluation needs.

        Args:
            checkpoint: Lightning's.
            data: the data.
            pieces: by name.
            plugin: writes the checkpoint.
        """
        self.models.notice_edits()
        state = {
            "version": self.models.version,
            "models": len(self.models),
            "shared": list(self.models.patterns),
            "fingerprint": dict(self.fingerprint(data, pieces)),
            "learning_rates": self._learning_rates(),
        }
        if weights_only(checkpoint):
            evaluated = {name: piece for name, piece in pieces.items() if piece.for_evaluation}
            return {**state, "pieces": {name: piece.evaluation_state() for name, piece in evaluated.items()}}
        # Lightning does not say when a checkpoint is on the disk. At the next checkpoint the previous one is, if it is
        # one that SafeCheckpointIO confirms; with any other plugin a failed write ends the run.
        for piece in pieces.values() if getattr(plugin, "confirmed", True) else ():
            piece.checkpointed()
        return {**state, "pieces": {name: piece.state_dict() for name, piece in pieces.items()}}

    def load(
        self,
        checkpoint: dict[str, Any],
        data: FederatedDataModule | None,
        pieces: Mapping[str, Piece],
        training: bool,
    ) -> None:
        """Load the state, before Lightning loads its own: the models first, then the pieces.

        Args:
            checkpoint: Lightning's.
            data: the data; None: there is none, and only the models are needed.
            pieces: by name.
            training: whether rounds will run; if not, only pieces that an evaluation needs are loaded.

        Raises:
            ConfigurationError: the state is incomplete, or another federation's; names what is missing or differs.
        """
        needed = {name: piece for name, piece in pieces.items() if training or piece.for_evaluation}
        if training:
            check_complete(checkpoint)
        state = _read(checkpoint, needed)
        if data is None:
            agree(state["fingerprint"], of_models(self.models.tensors[0], self.models.levels))
        else:
            self._check(state, self.fingerprint(data, pieces), training)
        self.models.version = state["version"]
        if data is None or len(self.models) != state["models"]:
            self.hosting.close()
        self.models.resize(state["models"], state["shared"])
        load_pieces(needed, state["pieces"])

    def _check(self, state: Mapping[str, Any], fingerprint: Mapping[str, str], training: bool) -> None:
        """Refuse the state of another federation.

        Args:
            state: of a checkpoint.
            fingerprint: of the present configuration.
            training: whether rounds will run.

        Raises:
            ConfigurationError: names what differs.
        """
        present = dict(fingerprint)
        if not training:
            # Clusters, personal tensors and masks are stored by client id, and an id is another client in other data.
            of_clients = self.hosting.task_parts.rule.personal or "personal" in present or state["models"] > 1
            names = (*FOR_EVALUATION, *OF_CLIENTS) if of_clients else FOR_EVALUATION
            present = {name: present[name] for name in names}
        elif self.clustering.takes_over:
            present.pop("clustering")
        agree(state["fingerprint"], present)
        if training:
            _check_models(self.clustering, state["models"])

    def rescale(self, checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[Any]) -> None:
        """Change the learning rates in a checkpoint's optimizer states to the present configuration's.

        Args:
            checkpoint: Lightning's; the run resumes from it.
            optimizers: of the run.
            schedules: of the run.

        Raises:
            ConfigurationError: the checkpoint's optimizers have another number of parameters, or other schedules.
        """
        check_optimizers_fit(optimizers, schedules, checkpoint)
        before = checkpoint[KEY]["learning_rates"]
        for number, (name, lr) in enumerate(self._learning_rates().items()):
            if before[name] != lr:
                rescale(checkpoint, number, before[name], lr)

    def _learning_rates(self) -> dict[str, float]:
        made = {name: make([nn.Parameter(torch.zeros(1))]) for name, make in self.optimizers.items()}
        return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in made.items()}


def _read(checkpoint: Mapping[str, Any], pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """Return the state in a checkpoint.

    Raises:
        ConfigurationError: the checkpoint has no such state, or an entry to load is missing or of another type.
    """
    if KEY not in checkpoint:
        raise ConfigurationError("Expected a checkpoint of a federated run but got one without a federation's state")
    state: dict[str, Any] = checkpoint[KEY]
    check_state(state)
    missing = [name for name in ENTRIES if name not in state]
    missing += [name for name in pieces if name not in state.get("pieces", {})]
    if missing:
        raise ConfigurationError(
            f"Expected a whole federation's state in the checkpoint but got none of {missing}: checkpoints of other "
            "versions of hetfl cannot be read"
        )
    # A net is made for each model, so the number of models has to be that of the values to load.
    held = {name.split(".")[1] for name in checkpoint.get("state_dict", {}) if name.startswith("models.")}
    if state["models"] != len(held):
        raise ConfigurationError(
            f"Expected {len(held)} global models in the checkpoint, as it has values of, but got "
            f"{state['models']!r:.40}"
        )
    return state


def _check_models(clustering: Clustering, count: int) -> None:
    """Warn if a checkpoint has more models than the configuration asks for.

    Args:
        clustering: as configured.
        count: number of the checkpoint's models.

    Raises:
        ConfigurationError: the checkpoint has fewer models.
    """
    wanted = clustering.initial_models
    if wanted > count:
        raise ConfigurationError(
            f"Expected at most {count} clusters, as many global models as the checkpoint holds, but got {wanted}: a "
            "run goes on with the models that it has"
        )
    if wanted < count and not clustering.grows:
        members = ", each by the clients that it has" if clustering.takes_over else ""
        rank_zero_warn(
            f"The checkpoint holds {count} global models, the configuration asks for {wanted}: all {count} are trained "
            f"on{members}"
        )
