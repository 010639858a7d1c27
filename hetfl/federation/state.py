"""What a checkpoint holds beyond Lightning's own: residuals, thresholds, policy, statistics, costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.federation.fingerprint import compare

if TYPE_CHECKING:
    from hetfl.federation.module import FederatedModule

PARTS = ("ledger", "selection", "uplink")
FOR_EVALUATION = ("net", "levels")
"""What must agree when a checkpoint is only evaluated: its data and its uplink may be others."""


def save(module: FederatedModule, checkpoint: dict[str, Any]) -> None:
    """Add the federation's state to Lightning's checkpoint: plain types and tensors."""
    # Lightning does not tell when a checkpoint is on the disk. By the next one the last one is, or SafeCheckpointIO
    # knows better; every other checkpoint plugin ends the run.
    if not getattr(module.trainer.strategy.checkpoint_io, "failed", False):
        module.uplink.checkpointed()
        if module.local.penalty is not None:
            module.local.penalty.checkpointed()
    checkpoint["hetfl"] = {
        "version": module.version,
        "fingerprint": module.fingerprint,
        "client_lr": _client_lr(module),
        **{part: getattr(module, part).state_dict() for part in PARTS},
        "statistics": module.statistics.state_dict(module.weights_mark),
        "penalty": {} if module.local.penalty is None else module.local.penalty.state_dict(),
    }


def load(module: FederatedModule, checkpoint: dict[str, Any]) -> None:
    """Take the federation's state back, before Lightning takes its own.

    A client learning rate that was changed in the configuration since then scales the one in the checkpoint, and its
    schedule: the optimizers' states would otherwise bring the old one back.

    Raises:
        ConfigurationError: the checkpoint belongs to another federation; names what differs.
    """
    state = checkpoint.get("hetfl")
    if state is None:
        raise ConfigurationError("Expected a checkpoint of a federated run but got one without a federation's state")
    present = module.fingerprint
    if not module.trainer.training:
        present = {name: present[name] for name in FOR_EVALUATION}
    compare(state["fingerprint"], present)
    module.version = state["version"]
    for part in (*PARTS, "statistics"):
        getattr(module, part).load_state_dict(state[part])
    if module.local.penalty is not None and module.trainer.training:
        module.local.penalty.load_state_dict(state["penalty"])
    before, now = state["client_lr"], _client_lr(module)
    if before != now:
        ratio = now / before if before else 1.0
        for group in checkpoint["optimizer_states"][1]["param_groups"]:
            group |= {key: group[key] * ratio for key in ("lr", "initial_lr") if key in group}
        for schedule in checkpoint["lr_schedulers"]:
            schedule |= {key: [lr * ratio for lr in schedule[key]] for key in ("base_lrs", "_last_lr")}


def _client_lr(module: FederatedModule) -> float:
    return float(module.local.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"])
