"""Checks that training can resume from a checkpoint, before anything in the run folder changes.

Lightning restores optimizers, schedules and loops last, after ``on_fit_start``. Here their errors are found earlier,
when the checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from hetfl.errors import ConfigurationError
from hetfl.piece import Piece
from hetfl.trainer.fingerprint import LEARNING_RATES

OPTIMIZERS, SCHEDULES, LOOPS = "optimizer_states", "lr_schedulers", "loops"
"""Lightning's names of the parts of a checkpoint that it restores last."""
PROGRESS = ("epoch_progress", "batch_progress", "scheduler_progress", "optim_step_progress")
"""Lightning's names of the counts in the state of a loop."""


def weights_only(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved with ``save_weights_only``, without the state of training."""
    return OPTIMIZERS not in checkpoint


def check_complete(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks a part of the state of training.

    Raises:
        ConfigurationError: the checkpoint has only weights, or lacks another part.
    """
    if weights_only(checkpoint):
        raise ConfigurationError(
            "Expected a checkpoint with the state of training but got one of weights only (save_weights_only), which "
            "can be tested but not resumed"
        )
    for name, kind in ((OPTIMIZERS, Sequence), (SCHEDULES, Sequence), (LOOPS, Mapping)):
        if not isinstance(checkpoint.get(name), kind):
            raise ConfigurationError(f"Expected {name} in the checkpoint but got {_kind(checkpoint.get(name))}")
    if not isinstance(checkpoint[LOOPS].get("fit_loop"), Mapping):
        raise ConfigurationError("Expected a fit_loop in the checkpoint's loops but got none")
    for name, progress in checkpoint[LOOPS]["fit_loop"].items():
        if name.rpartition(".")[2] in PROGRESS and not _has_counts(progress):
            raise ConfigurationError(f"Expected counts as {name} in the checkpoint's fit_loop but got {progress!r:.60}")


def load_pieces(pieces: Mapping[str, Piece], states: Mapping[str, dict[str, Any]]) -> None:
    """Load the states of pieces.

    Args:
        pieces: by name.
        states: by name of the piece.

    Raises:
        ConfigurationError: names the piece whose state is not one of it.
    """
    for name, piece in pieces.items():
        try:
            piece.load_state_dict(states[name])
        except ConfigurationError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"Expected a state of {type(piece).__name__} as {name} in the checkpoint but got another "
                f"({type(error).__name__}: {error})"
            ) from error


def check_optimizers_fit(
    optimizers: Sequence[Optimizer], schedules: Sequence[Any], checkpoint: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint whose optimizer states or schedules do not fit those of the run.

    Args:
        optimizers: optimizers of the run.
        schedules: schedules of the run.
        checkpoint: a complete checkpoint.

    Raises:
        ConfigurationError: the numbers of optimizers, parameters or schedules differ.
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


def rescale(checkpoint: dict[str, Any], number: int, before: float, now: float) -> None:
    """Change an optimizer's learning rates in a checkpoint, and those in the state of the clients' schedule.

    Loading the schedule's state would otherwise restore the old rates.

    Args:
        checkpoint: the checkpoint, which is changed.
        number: of the optimizer: 0 is the server's, 1 the clients'.
        before: learning rate of the checkpoint's settings.
        now: learning rate of the present settings.
    """

    def rescaled(lr: float) -> float:
        return lr * now / before if before else now

    for group in checkpoint[OPTIMIZERS][number]["param_groups"]:
        group |= {key: rescaled(group[key]) for key in LEARNING_RATES if key in group}
    schedules = list(checkpoint[SCHEDULES]) if number == 1 else []
    while schedules:
        schedule = schedules.pop()
        schedules += schedule.get("_schedulers", ())
        schedule |= {key: [rescaled(lr) for lr in schedule[key]] for key in ("base_lrs", "_last_lr") if key in schedule}


def _sizes(state: Any) -> list[int]:
    """Return the number of parameters of each group of an optimizer state; empty if the value is not such a state."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, Sequence) or not isinstance(state.get("state"), Mapping):
        return []
    return [len(group.get("params", ())) for group in groups]


def _has_counts(progress: Any) -> bool:
    """Return whether a value has Lightning's counts, of all epochs or steps and of the present fit."""
    parts = [progress.get(name) for name in ("total", "current")] if isinstance(progress, Mapping) else [None]
    return all(isinstance(part, Mapping) and all(isinstance(n, int) for n in part.values()) for part in parts)


def _kind(value: Any) -> str:
    return "none" if value is None else f"a {type(value).__name__}"
