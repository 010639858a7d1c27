"""What a checkpoint holds beyond Lightning's own: the state of every piece, and what it depends on."""

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
from hetfl.federation.models import MakeOptimizer
from hetfl.piece import Piece
from hetfl.submodel import parameters_of
from hetfl.trainer.fingerprint import LEARNING_RATES, agree, fingerprint, of_models
from hetfl.trainer.resuming import check_complete, check_optimizers_fit, weights_only

KEY = "hetfl"
"""Where a checkpoint holds it."""
ENTRIES = ("version", "models", "shared", "fingerprint", "learning_rates", "pieces")
FOR_EVALUATION = ("net", "levels")
"""What must agree when a checkpoint with one model is only evaluated: its data and its uplink may be others."""


class RunState:
    """The state of a run in its checkpoints.

    Args:
        hosting: has the global models, whose values are Lightning's to save.
        clustering: as configured.
        server: makes the server's optimizer.
        method: returns the method with its settings in short text.
    """

    def __init__(
        self, hosting: Hosting, clustering: Clustering, server: MakeOptimizer, method: Callable[[], str]
    ) -> None:
        self.hosting, self.models, self.clustering, self.method = hosting, hosting.models, clustering, method
        self.optimizers = {"server": server, "clients": hosting.problem.local.optimizer}
        self.forget()

    def forget(self) -> None:
        """Forget the fingerprint, which is taken once a run, and not at every checkpoint."""
        self._fingerprint: dict[str, str] = {}

    def fingerprint(self, data: FederatedDataModule, pieces: Mapping[str, Piece]) -> dict[str, str]:
        """Return by name what the state depends on, in short text that can be compared and shown."""
        if not self._fingerprint:
            problem = self.hosting.problem
            parameters = parameters_of(self.models[0]).values()
            whole = fingerprint(parameters, problem.local, self.optimizers["server"], data, pieces)
            own = {"seed": str(problem.seed), "method": self.method()}
            self._fingerprint = {**own, **of_models(self.models.tensors[0], self.models.levels), **whole}
        return self._fingerprint

    def saved(
        self,
        checkpoint: Mapping[str, Any],
        data: FederatedDataModule,
        pieces: Mapping[str, Piece],
        plugin: CheckpointIO,
    ) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain types and tensors.

        A checkpoint of weights only, as ``ModelCheckpoint(save_weights_only=True)`` asks for, gets what an evaluation
        needs.

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
        # Lightning does not tell when a checkpoint is on the disk. By the next one the last one is, or SafeCheckpointIO
        # knows better; every other checkpoint plugin ends the run.
        for piece in pieces.values() if not getattr(plugin, "failed", False) else ():
            piece.checkpointed()
        return {**state, "pieces": {name: piece.state_dict() for name, piece in pieces.items()}}

    def load(
        self,
        checkpoint: dict[str, Any],
        data: FederatedDataModule | None,
        pieces: Mapping[str, Piece],
        training: bool,
    ) -> None:
        """Take the state back, before Lightning takes its own: the models first, then the pieces.

        Args:
            checkpoint: Lightning's.
            data: the data; None: there is none, and the models are all that is asked for.
            pieces: by name.
            training: whether rounds are to be run; if not, only pieces that an evaluation needs are loaded.

        Raises:
            ConfigurationError: the state is not whole, or another federation's; names what is missing or differs.
        """
        needed = {name: piece for name, piece in pieces.items() if training or piece.for_evaluation}
        if training:
            check_complete(checkpoint)
        state = _read(checkpoint, needed)
        if data is None:
            agree(state["fingerprint"], of_models(self.models.tensors[0], self.models.levels))
        else:
            check(state, self.fingerprint(data, pieces), self.clustering, training)
        self.models.version = state["version"]
        if data is None or len(self.models) != state["models"]:
            self.hosting.close()
        self.models.resize(state["models"], state["shared"])
        for name, piece in needed.items():
            piece.load_state_dict(state["pieces"][name])

    def rescale(self, checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[Any]) -> None:
        """Give a checkpoint's optimizers the learning rates that are configured now.

        Args:
            checkpoint: Lightning's, one to go on from.
            optimizers: of the run.
            schedules: of the run.

        Raises:
            ConfigurationError: the checkpoint's are of another number of parameters, or of other schedules.
        """
        check_optimizers_fit(optimizers, schedules, checkpoint)
        before = checkpoint[KEY]["learning_rates"]
        for number, (name, lr) in enumerate(self._learning_rates().items()):
            if before[name] != lr:
                _rescale(checkpoint, number, before[name], lr)

    def _learning_rates(self) -> dict[str, float]:
        made = {name: make([nn.Parameter(torch.zeros(1))]) for name, make in self.optimizers.items()}
        return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in made.items()}


def _read(checkpoint: Mapping[str, Any], pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """Return the state in a checkpoint.

    Raises:
        ConfigurationError: there is none, or it lacks something that is to be loaded.
    """
    if KEY not in checkpoint:
        raise ConfigurationError("Expected a checkpoint of a federated run but got one without a federation's state")
    state: dict[str, Any] = checkpoint[KEY]
    missing = [name for name in ENTRIES if name not in state]
    missing += [name for name in pieces if name not in state.get("pieces", {})]
    if missing:
        raise ConfigurationError(
            f"Expected a whole federation's state in the checkpoint but got none of {missing}: checkpoints of other "
            "versions of hetfl cannot be read"
        )
    return state


def check(state: Mapping[str, Any], fingerprint: Mapping[str, str], clustering: Clustering, training: bool) -> None:
    """Refuse the state of another federation.

    Args:
        state: of a checkpoint.
        fingerprint: the present one.
        clustering: as configured.
        training: whether rounds are to be run.

    Raises:
        ConfigurationError: names what differs.
    """
    present = dict(fingerprint)
    if not training:
        # Who is in which cluster is known by a client's number, which is another client's in other data.
        names = (*FOR_EVALUATION, "partition") if state["models"] > 1 else FOR_EVALUATION
        present = {name: present[name] for name in names}
    elif clustering.takes_over:
        present.pop("clustering")
    agree(state["fingerprint"], present)
    if training:
        _check_models(clustering, state["models"])


def _check_models(clustering: Clustering, count: int) -> None:
    """Say what becomes of a checkpoint's models, if there are more of them than the configuration asks for.

    Args:
        clustering: as configured.
        count: number of the checkpoint's models.

    Raises:
        ConfigurationError: there are fewer.
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


def _rescale(checkpoint: dict[str, Any], number: int, before: float, now: float) -> None:
    """Change an optimizer's learning rates in a checkpoint, and those that the clients' schedule goes by.

    Its state would otherwise bring the old ones back.
    """

    def rescaled(lr: float) -> float:
        return lr * now / before if before else now

    for group in checkpoint["optimizer_states"][number]["param_groups"]:
        group |= {key: rescaled(group[key]) for key in LEARNING_RATES if key in group}
    schedules = list(checkpoint["lr_schedulers"]) if number == 1 else []
    while schedules:
        schedule = schedules.pop()
        schedules += schedule.get("_schedulers", ())
        schedule |= {key: [rescaled(lr) for lr in schedule[key]] for key in ("base_lrs", "_last_lr") if key in schedule}
