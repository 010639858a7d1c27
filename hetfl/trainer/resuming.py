"""Whether a checkpoint is one to go on from: asked before anything in a run's folder changes.

Lightning restores optimizers, schedules and loops last, after ``on_fit_start``. What it would stumble over then is
refused here, when the checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from hetfl.errors import ConfigurationError

OPTIMIZERS, SCHEDULES, LOOPS = "optimizer_states", "lr_schedulers", "loops"
"""What Lightning restores last, by its names."""


def weights_only(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether Lightning was asked to leave out of a checkpoint what only training needs."""
    return OPTIMIZERS not in checkpoint


def check_complete(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks what training goes on with.

    Raises:
        ConfigurationError: it is one of weights only, or lacks another part.
    """
    if weights_only(checkpoint):
        raise ConfigurationError(
            "Expected a checkpoint to go on from but got one of weights only (save_weights_only), which can be "
            "tested and not trained on"
        )
    for name, kind in ((OPTIMIZERS, Sequence), (SCHEDULES, Sequence), (LOOPS, Mapping)):
        if not isinstance(checkpoint.get(name), kind):
            raise ConfigurationError(f"Expected {name} in the checkpoint but got {_kind(checkpoint.get(name))}")
    if not isinstance(checkpoint[LOOPS].get("fit_loop"), Mapping):
        raise ConfigurationError("Expected a fit_loop in the checkpoint's loops but got none")


def check_optimizers_fit(
    optimizers: Sequence[Optimizer], schedules: Sequence[Any], checkpoint: Mapping[str, Any]
) -> None:
    """Refuse optimizer states that the run's optimizers cannot take, and schedules that it does not have.

    Args:
        optimizers: of the run.
        schedules: of the run.
        checkpoint: a complete one.

    Raises:
        ConfigurationError: numbers of optimizers, parameters or schedules differ.
    """
    expected = [_sizes(optimizer.state_dict()) for optimizer in optimizers]
    saved = [_sizes(state) for state in checkpoint[OPTIMIZERS]]
    if saved != expected:
        raise ConfigurationError(
            f"Expected optimizers of {expected} parameters by group in the checkpoint but got {saved}"
        )
    if len(checkpoint[SCHEDULES]) != len(schedules):
        raise ConfigurationError(
            f"Expected {len(schedules)} schedules in the checkpoint but got {len(checkpoint[SCHEDULES])}"
        )


def _sizes(state: Any) -> list[int]:
    """Return the number of parameters of each group of an optimizer's state; none if it is no such state."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, Sequence) or not isinstance(state.get("state"), Mapping):
        return []
    return [len(group.get("params", ())) for group in groups]


def _kind(value: Any) -> str:
    return "none" if value is None else f"a {type(value).__name__}"
