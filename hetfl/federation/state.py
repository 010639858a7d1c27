"""What a checkpoint holds beyond Lightning's own: residuals, thresholds, policy, statistics, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from hetfl.clustering import Clustering
from hetfl.errors import ConfigurationError
from hetfl.federation.fingerprint import LEARNING_RATES, compare
from hetfl.federation.predicting import PREDICTED, load_models
from hetfl.federation.resuming import check_complete, check_optimizers_fit, check_parts, weights_only

if TYPE_CHECKING:
    from hetfl.federation.module import FederatedModule

EVALUATED = (*PREDICTED, "ledger")
"""What every checkpoint holds: enough to evaluate its models."""
TRAINED = ("learning_rates", "uplink", "selection", "penalty", "clients")
"""What a checkpoint to go on from holds besides."""
FOR_EVALUATION = ("net", "levels")
"""What must agree when a checkpoint with one model is only evaluated: its data and its uplink may be others."""


def save(module: FederatedModule, checkpoint: dict[str, Any]) -> None:
    """Add the federation's state to Lightning's checkpoint: plain types and tensors.

    One of weights only, as ``ModelCheckpoint(save_weights_only=True)`` asks for, gets what an evaluation needs.
    """
    module.notice_edits()
    kept = {
        "version": module.version,
        "fingerprint": module.fingerprint,
        "ledger": module.ledger.state_dict(),
        "clustering": module.clustering.assignments(),
        "statistics": module.statistics.state_dict(module.weights_mark),
    }
    checkpoint["hetfl"] = kept if weights_only(checkpoint) else kept | _training_state(module)


def _training_state(module: FederatedModule) -> dict[str, Any]:
    """Return what a run needs to go on, and let go of what the checkpoint before the last one needed."""
    # Lightning does not tell when a checkpoint is on the disk. By the next one the last one is, or SafeCheckpointIO
    # knows better; every other checkpoint plugin ends the run.
    if not getattr(module.trainer.strategy.checkpoint_io, "failed", False):
        module.uplink.checkpointed()
        module.selection.checkpointed()
        module.clustering.checkpointed()
        module.clients.checkpointed()
        if module.local.penalty is not None:
            module.local.penalty.checkpointed()
    return {
        "learning_rates": _learning_rates(module),
        "uplink": module.uplink.state_dict(),
        "selection": module.selection.state_dict(),
        "clustering": module.clustering.state_dict(),
        "clients": module.clients.state_dict(),
        "penalty": {} if module.local.penalty is None else module.local.penalty.state_dict(),
        "executor": module.executor.state_dict(),
    }


def load(module: FederatedModule, checkpoint: dict[str, Any]) -> None:
    """Take the federation's state back, before Lightning takes its own.

    A learning rate that was changed in the configuration since then scales the one in the checkpoint, and its schedule:
    the optimizers' states would otherwise bring the old one back.

    Raises:
        ConfigurationError: the checkpoint belongs to another federation; names what differs.
    """
    state = checkpoint.get("hetfl")
    if state is None:
        raise ConfigurationError("Expected a checkpoint of a federated run but got one without a federation's state")
    if not module.has_data:
        load_models(module, state, checkpoint["state_dict"])
        return
    if module.trainer.training:
        check_complete(checkpoint)
    _check_agrees(module, state)
    module.version = state["version"]
    module.ledger.load_state_dict(state["ledger"])
    module.statistics.load_state_dict(state["statistics"])
    if module.trainer.training:
        module.executor.load_state_dict(state.get("executor", {}))  # older checkpoints have none: it is chosen anew
        module.uplink.load_state_dict(state["uplink"])
        module.selection.load_state_dict(state["selection"])
        if not module.clustering.takes_over:
            module.clustering.load_own_state(state["clustering"]["own"])
        module.clients.load_state_dict(state["clients"])
    module.clustering.load_assignments(state["clustering"])
    module.set_models(module.clustering.count)
    if module.trainer.precision == "64-true":
        module.double()  # Lightning does so only once it has put the checkpoint's weights in, rounded to float32
    module.predict_seconds()
    if not module.trainer.training:
        return
    if module.local.penalty is not None:
        module.local.penalty.load_state_dict(state["penalty"])
    optimizers, schedules = module.configure_optimizers()
    check_optimizers_fit(optimizers, schedules, checkpoint)
    _rescale_all(checkpoint, state["learning_rates"], _learning_rates(module))


def _check_agrees(module: FederatedModule, state: dict[str, Any]) -> None:
    """Refuse a state that is not whole, or not of such a federation.

    Raises:
        ConfigurationError: names what is missing, or what differs.
    """
    check_parts(state, (*EVALUATED, *TRAINED) if module.trainer.training else EVALUATED)
    present = module.fingerprint
    if not module.trainer.training:
        # Who is in which cluster is known by a client's number, which is another client's in other data.
        names = (*FOR_EVALUATION, "partition") if state["clustering"]["count"] > 1 else FOR_EVALUATION
        present = {name: present[name] for name in names}
    elif module.clustering.takes_over:
        present = {name: value for name, value in present.items() if name != "clustering"}
    compare(state["fingerprint"], present)
    if module.trainer.training:
        _check_models(module.clustering, state["clustering"]["count"])


def _check_models(clustering: Clustering, count: int) -> None:
    """Say what becomes of a checkpoint's models, if there are more of them than the configuration asks for.

    Args:
        clustering: as configured.
        count: number of the checkpoint's models.

    Raises:
        ConfigurationError: there are fewer.
    """
    if clustering.count > count:
        raise ConfigurationError(
            f"Expected at most {count} clusters, as many global models as the checkpoint holds, but got "
            f"{clustering.count}: a run goes on with the models that it has"
        )
    if clustering.count < count and not clustering.grows:
        members = ", each by the clients that it has" if clustering.takes_over else ""
        rank_zero_warn(
            f"The checkpoint holds {count} global models, the configuration asks for {clustering.count}: all {count} "
            f"are trained on{members}"
        )


def _learning_rates(module: FederatedModule) -> dict[str, float]:
    """Return the configured learning rates, in the order of the module's optimizers."""
    server = module.server_optimizer([nn.Parameter(torch.zeros(1))])
    clients = module.local.optimizer([nn.Parameter(torch.zeros(1))])
    return {"server": float(server.param_groups[0]["lr"]), "clients": float(clients.param_groups[0]["lr"])}


def _rescale_all(checkpoint: dict[str, Any], saved: Mapping[str, float], present: Mapping[str, float]) -> None:
    for number, (name, now) in enumerate(present.items()):
        if saved[name] != now:
            _rescale(checkpoint, number, saved[name], now)


def _rescale(checkpoint: dict[str, Any], number: int, before: float, now: float) -> None:
    """Change an optimizer's learning rates in a checkpoint, and those that the clients' schedule goes by."""

    def rescaled(lr: float) -> float:
        return lr * now / before if before else now

    for group in checkpoint["optimizer_states"][number]["param_groups"]:
        group |= {key: rescaled(group[key]) for key in LEARNING_RATES if key in group}
    schedules = list(checkpoint["lr_schedulers"]) if number == 1 else []
    while schedules:
        schedule = schedules.pop()
        schedules += schedule.get("_schedulers", ())
        schedule |= {key: [rescaled(lr) for lr in schedule[key]] for key in ("base_lrs", "_last_lr") if key in schedule}
