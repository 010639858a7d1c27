"""What every training has: the run folder, and the callbacks and the writer of checkpoints of hetfl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger

from hetfl.display import RoundProgress, RunSummary
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.runs.run_folder import RunFolder
from hetfl.session.callbacks import LastCheckpoint, RoundsLeft, last_checkpoint
from hetfl.session.drawing import Redrawing

SETTINGS: Mapping[str, Any] = {
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Arguments of Lightning's trainer that suit rounds."""


def callbacks_of_training(
    users: Sequence[Callback], stop: StopAtRoundEnd, *, progress: bool, checkpoints: bool, summary: bool, every: int
) -> list[Callback]:
    """Return the callbacks of a training beside those of the user.

    Args:
        users: the user's callbacks; a progress bar among them replaces the one of hetfl.
        stop: stops the run at the end of a round.
        progress: whether to show progress.
        checkpoints: whether to write checkpoints.
        summary: whether to print the summary after training; false if a test follows, which prints it.
        every: number of rounds from one drawing of the figures to the next; 0: none while it trains.
    """
    callbacks: list[Callback] = [RunSummary(after_fit=summary)]
    if progress and not any(isinstance(each, ProgressBar) for each in users):
        callbacks.append(RoundProgress())
    callbacks += [RoundsLeft(stop), stop]
    if checkpoints:
        callbacks.append(LastCheckpoint())
    return [*callbacks, Redrawing(every)] if every else callbacks


def listed(given: Any) -> list[Any]:
    """Return one or several values as a list; None: an empty one."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def with_safe_checkpoints(plugins: Sequence[Any]) -> tuple[list[Any], SafeCheckpointIO | None]:
    """Return plugins with one that writes safe checkpoints, and that one; None if the user has a plugin for them."""
    if any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        return list(plugins), None
    safe = SafeCheckpointIO()
    return [*plugins, safe], safe


def with_run_folder(loggers: Sequence[Logger]) -> list[Logger]:
    """Return loggers with a run folder, which comes first: checkpoints go to the folder of the first logger."""
    missing = [] if any(isinstance(each, RunFolder) for each in loggers) else [RunFolder()]
    return sorted([*missing, *loggers], key=lambda each: not isinstance(each, RunFolder))


def drop_previous(folders: Sequence[Path], safe: SafeCheckpointIO | None) -> None:
    """Remove the previous checkpoints of runs that have ended, unless a plugin of the user writes checkpoints."""
    if safe is not None:
        for folder in folders:
            safe.drop_previous(last_checkpoint(folder))
