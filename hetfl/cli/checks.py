"""Checks of settings before any object is made; errors are one line."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from hetfl.cli.errors import condense
from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import previous
from hetfl.trainer.requirements import PRECISIONS, check_limits

NOT_RUNS = ("describe", "data", "export", "unlearn")
"""Verbs that make no run folder and print no summary."""


PLAIN = (bool, int, float, str)
"""Types of arguments that cannot be null."""


@contextmanager
def as_configuration() -> Iterator[None]:
    """Convert errors of jsonargparse or of a constructor to errors of a setting.

    Raises:
        ConfigurationError: instead of ValueError, TypeError, OSError or RecursionError.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ConfigurationError(condense(str(error) or type(error).__name__)) from error


def run_folders(config: Namespace) -> list[Namespace]:
    """Return the settings of the loggers that are run folders."""
    loggers = config.trainer.logger
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [each for each in loggers if isinstance(each, Namespace) and each.class_path.endswith("RunFolder")]


def check_settings(verb: str, config: Namespace) -> None:
    """Check settings that Lightning would check later or never.

    Raises:
        ConfigurationError: a setting cannot work; the message names it.
    """
    check_trainer(config.trainer)
    for part in ("model", "data"):
        check_nulls(part, config[part])
    if verb != "describe":
        check_checkpoint(verb, config.get("ckpt_path"))
    check_limits(verb, config.trainer)
    if config.trainer.check_val_every_n_epoch == 0:
        raise ConfigurationError("Expected trainer.check_val_every_n_epoch of at least 1 round or null but got 0")
    for folder in run_folders(config) if verb not in NOT_RUNS else []:
        check_root(folder.init_args)


def check_nulls(where: str, given: Any, kind: Any = None) -> None:
    """Refuse null for an argument of a class that must be a number, a boolean or a text, at any depth.

    jsonargparse accepts it: ``enabled:`` without a value would mean false.

    Args:
        where: the key of the value.
        given: a value; values that are not classes or groups of settings are ignored.
        kind: the class, if the value does not contain its class path.

    Raises:
        ConfigurationError: an argument is null; the message has the key and the type.
    """
    if not isinstance(given, Namespace):
        return
    named = "class_path" in given
    made, arguments = (resolve_name(given.class_path), given.get("init_args")) if named else (kind, given)
    if made is None or not isinstance(arguments, Namespace):
        return
    hints = _hints(made)
    never_null = _never_null(made, hints)
    for name, value in vars(arguments).items():
        if value is None and name in never_null:
            raise ConfigurationError(f"Expected {where}.{name} of type {never_null[name]} but got null")
        hint = hints.get(name)
        groups = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
        check_nulls(f"{where}.{name}", value, groups[0] if groups else None)


def _hints(made: Any) -> dict[str, Any]:
    """Return the types of the arguments of a class or function, except those that only type checkers can resolve."""
    hints: dict[str, Any] = {}
    for each in reversed(_constructors(made)):
        with suppress(NameError, TypeError):
            hints |= get_type_hints(each)
    return hints


def _never_null(made: Any, hints: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of a class or function of a plain type whose default is not null, with their types."""
    parameters: dict[str, inspect.Parameter] = {}
    for each in reversed(_constructors(made)):
        parameters |= signature(each).parameters
    return {
        name: inspect.formatannotation(hints[name])
        for name, parameter in parameters.items()
        if parameter.default is not None and (hints.get(name) in PLAIN or get_origin(hints.get(name)) is Literal)
    }


def _constructors(made: Any) -> list[Any]:
    """Return a function, or the constructor of a class, followed by those of its bases if it takes ``**kwargs``."""
    if not isinstance(made, type):
        return [made]
    constructors: list[Any] = []
    for constructor in (vars(kind)["__init__"] for kind in made.__mro__ if "__init__" in vars(kind)):
        if not inspect.isfunction(constructor):  # it is not written in Python
            break
        constructors.append(constructor)
        if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in signature(constructor).parameters.values()):
            break
    return constructors


def check_trainer(trainer: Namespace) -> None:
    """Refuse precisions and strategies that a federated module does not support.

    Raises:
        ConfigurationError: the precision is not supported, or the strategy divides the model.
    """
    if trainer.precision is not None and str(trainer.precision) not in (*PRECISIONS, "32", "64"):
        # On devices without float16 Lightning would use bf16 instead of 16-mixed, with a warning.
        raise ConfigurationError(f"Expected trainer.precision in {PRECISIONS} but got {trainer.precision}")
    strategy = trainer.strategy
    if isinstance(strategy, str) and strategy not in ("auto", "single_device") and not strategy.startswith("ddp"):
        raise ConfigurationError(f"Expected trainer.strategy auto, single_device or ddp but got {strategy}")


def check_checkpoint(verb: str, path: Any) -> None:
    """Refuse a checkpoint that does not exist, and an evaluation without a checkpoint.

    Raises:
        ConfigurationError: a checkpoint is missing.
    """
    if not path:
        if verb != "fit":
            raise ConfigurationError(f"Expected --ckpt_path, the checkpoint of a run, for {verb} but got none")
    elif Path(path).is_dir():
        raise ConfigurationError(f"Expected a checkpoint file as ckpt_path but got {path}, which is a directory")
    elif not any(previous(Path(path), age).is_file() for age in (0, 1)):  # 1: the previous one is read if 0 is gone
        raise ConfigurationError(f"Expected a checkpoint file as ckpt_path but got {path}, which does not exist")


def check_root(folder: Namespace) -> None:
    """Refuse a root in which no run folder can be made.

    Raises:
        ConfigurationError: the root is a file, lies below a file, or is read-only.
    """
    root = Path(folder.get("folder") or folder.get("root") or ".")
    nearest = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"Expected a folder for runs in trainer.logger but got {root}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"Expected a folder for runs in trainer.logger but got {root}: {nearest} is read-only")
