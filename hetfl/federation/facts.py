"""The facts of a federation."""

from __future__ import annotations

from typing import Any, Protocol

from lightning import Trainer
from torch import Tensor, nn

from hetfl.clustering import Clustering
from hetfl.compression import ErrorFeedback, Identity
from hetfl.data import FederatedDataModule
from hetfl.downlink.broadcast import Broadcast
from hetfl.federation.hosting import Hosting
from hetfl.global_models import GlobalModels
from hetfl.levels.level_set import LevelSet
from hetfl.local import ServerTraining
from hetfl.lora.adapters import scales_of
from hetfl.objectives import Objective
from hetfl.parts import PartRule
from hetfl.piece import Facts
from hetfl.selection import Selection
from hetfl.submodel import parameters_of
from hetfl.trainer.utility import Utility


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
    downlink: Broadcast
    seed: int

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run."""
        ...

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
    lossy = of.uplink.half_precision or type(of.uplink.compressor) is not Identity
    server, models, problem, outputs = data.server_data, of.models, of.hosting.problem, data.num_classes
    kept = {"residuals": of.uplink.enabled and lossy, "memories": problem.local.regulariser.memories is not None}
    # Without a checkpoint, a fit after another one begins the schedule of the learning rate again.
    asked, done, rates = rounds or 0, 0 if of.trainer.ckpt_path else models.version, problem.local.learning_rates
    utility = (
        None if server is None else Utility(models, models.levels.largest, of.objective, of.predict, server, outputs)
    )
    return Facts(
        sizes=data.sizes,
        held_out=[len(each) for each in data.resident.held_out],
        seed=of.seed,
        levels=list(of.levels),
        rounds=rounds,
        parameters=parameters_of(models[0]),
        shared=models.shared,
        masks=of.parts.masks,
        frozen=models.frozen,
        sparse=of.uplink.compressor.sparse,
        remembers=" and ".join(name for name, is_kept in kept.items() if is_kept),
        apart=of.clustering.apart,
        server_data=server,
        client_names=data.client_names,
        lrs=rates(min(done, asked)) + rates(asked - done),
        cohort=of.selection.clients_per_round,
        utility=utility,
        tuning=None if utility is None else utility.tuned,
        classes=outputs if of.objective.owns_labels else 0,
        server_training=None if server is None else ServerTraining(problem, server, models, outputs),
        epochs=problem.local.epochs,
        models=models,
        personal=of.downlink.personal,
        scales=lambda: {level: scales_of(of.levels.build(level)) for level in of.levels},
    )
