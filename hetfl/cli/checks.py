"""What can be found out from the settings alone: before anything is made, and in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from hetfl.checkpoint import previous
from hetfl.cli.errors import condense
from hetfl.errors import ConfigurationError
from hetfl.federation.module import PRECISIONS

NOT_RUNS = ("describe", "data", "export")
"""Verbs that make no run folder and print no summary."""


@contextmanager
def as_configuration() -> Iterator[None]:
    """Take what jsonargparse or a constructor of the user's choice raises as a wrong setting.

    Raises:
        ConfigurationError: in place of ValueError, TypeError or OSError.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise ConfigurationError(condense(str(error) or type(error).__name__)) from error


def run_folders(config: Namespace) -> list[Namespace]:
    """Return the settings of the loggers that are run folders."""
    loggers = config.trainer.logger
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [each for each in loggers if isinstance(each, Namespace) and each.class_path.endswith("RunFolder")]


def check_settings(verb: str, config: Namespace) -> None:
    """Check what Lightning would find out late, otherwise, or not at all.

    Raises:
        ConfigurationError: a setting that cannot work; names it.
    """
    check_trainer(config.trainer)
    if verb != "describe":
        check_checkpoint(verb, config.get("ckpt_path"))
    if verb == "fit" and config.trainer.max_epochs == 0:
        raise ConfigurationError("Expected trainer.max_epochs, the number of rounds, of at least 1 but got 0")
    if config.trainer.check_val_every_n_epoch == 0:
        raise ConfigurationError("Expected trainer.check_val_every_n_epoch of at least 1 round or null but got 0")
    for folder in run_folders(config) if verb not in NOT_RUNS else []:
        check_root(folder.init_args)


def check_trainer(trainer: Namespace) -> None:
    """Refuse precisions and devices that a federated module does not have.

    Raises:
        ConfigurationError: another precision, or more than one device.
    """
    if trainer.precision is not None and str(trainer.precision) not in (*PRECISIONS, "32", "64"):
        # Lightning would take bf16 in place of 16-mixed where the device has no float16, with a warning.
        raise ConfigurationError(f"Expected trainer.precision in {PRECISIONS} but got {trainer.precision}")
    devices = trainer.devices
    several = len(devices) > 1 if isinstance(devices, list) else str(devices).isdecimal() and int(devices) > 1
    if several or trainer.num_nodes > 1:
        got = f"trainer.num_nodes {trainer.num_nodes}" if trainer.num_nodes > 1 else f"trainer.devices {devices}"
        raise ConfigurationError(f"Expected one device but got {got}: use model.executor hetfl.local.Workers")
    if isinstance(trainer.strategy, str) and trainer.strategy not in ("auto", "single_device"):
        raise ConfigurationError(f"Expected trainer.strategy auto, one device, but got {trainer.strategy}")


def check_checkpoint(verb: str, path: Any) -> None:
    """Refuse a checkpoint that is not there, and to evaluate without one.

    Raises:
        ConfigurationError: no file is named where one must be.
    """
    if not path:
        if verb != "fit":
            raise ConfigurationError(f"Expected --ckpt_path, the checkpoint of a run, for {verb} but got none")
    elif Path(path).is_dir():
        raise ConfigurationError(f"Expected a checkpoint file as ckpt_path but got {path}, which is a directory")
    elif not any(previous(Path(path), age).is_file() for age in (0, 1)):  # a kept one is taken if the newest is gone
        raise ConfigurationError(f"Expected a checkpoint file as ckpt_path but got {path}, which is not there")


def check_root(folder: Namespace) -> None:
    """Refuse a place in which no run folder can be made.

    Raises:
        ConfigurationError: the root is a file, lies below one, or cannot be written.
    """
    root = Path(folder.get("folder") or folder.get("root") or ".")
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigurationError(f"Expected a folder for runs in trainer.logger but got {root}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"Expected a folder for runs in trainer.logger but got {root}: {there} is read-only")
