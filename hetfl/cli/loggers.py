"""The loggers of a run in its settings: a run folder beside any other, and the same place after a stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jsonargparse import Namespace

from hetfl.cli.checks import run_folders


def add_run_folder(config: Namespace) -> None:
    """Put a run folder before the loggers of a run that has others only.

    Args:
        config: the settings of a verb, which are changed.
    """
    logger = config.trainer.logger
    loggers = logger if isinstance(logger, list) else [logger]
    if any(isinstance(each, Namespace) for each in loggers) and not run_folders(config):
        arguments = Namespace(root="runs", name="run", folder=None)  # type: ignore[no-untyped-call]
        folder = Namespace(class_path="hetfl.runs.RunFolder", init_args=arguments)  # type: ignore[no-untyped-call]
        config.trainer.logger = [folder, *loggers]


def go_on_tracking(config: Namespace, places: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Let loggers go on where the run that is resumed has logged, each class of loggers in its order.

    Args:
        config: the settings of a verb, which are changed.
        places: classes of loggers, and the arguments with which they go on.
    """
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else []
    waiting = [each for each in loggers if isinstance(each, Namespace)]
    for name, arguments in places:
        for logger in waiting:
            if logger.class_path.rpartition(".")[2] == name:
                waiting.remove(logger)
                settings = logger.init_args
                known = {key: value for key, value in arguments.items() if key in settings}
                settings.update(Namespace(known))  # type: ignore[no-untyped-call]
                if further := {key: value for key, value in arguments.items() if key not in known}:
                    logger.dict_kwargs = {**(logger.get("dict_kwargs") or {}), **further}
                break
