"""The settings of objects that were made in Python, in the form of a configuration file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetfl.arguments import GIVEN
from hetfl.export.constructor import class_path
from hetfl.types import Level

PLAIN: tuple[type[Any], ...] = (bool, int, float, str)


class Settings:
    """Converts objects to settings, and notes what a configuration file cannot name.

    Attributes:
        unnamed: the keys of values that are no settings, such as functions and classes of a script, in dotted form.
    """

    def __init__(self) -> None:
        self.unnamed: list[str] = []

    def of(self, value: Any, key: str) -> Any:
        """Return a value as plain data: a class or an object as ``class_path`` and ``init_args``.

        Args:
            value: the value.
            key: its dotted name.
        """
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or isinstance(value, PLAIN):
            return _plain(value)
        if isinstance(value, Path | torch.device):
            return str(value)
        if isinstance(value, Level):
            sizes = {each.name: getattr(value, each.name) for each in fields(value) if each.name != "name"}
            defaults = {each.name: each.default for each in fields(value)}
            return {name: self.of(size, f"{key}.{name}") for name, size in sizes.items() if size != defaults[name]}
        if isinstance(value, Mapping):
            return {str(name): self.of(each, f"{key}.{name}") for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(each, f"{key}[{number}]") for number, each in enumerate(value)]
        if isinstance(value, partial) and isinstance(value.func, type):
            arguments = _named_arguments(value)
            if arguments is not None:
                return self._named(value.func, arguments, key)
        if isinstance(value, type):
            return self._named(value, {}, key)
        if not hasattr(value, "__dict__") or _is_routine(value) or _is_data(value):
            self.unnamed.append(key)
            return repr(value)[:80]
        return self._named(type(value), self._arguments(value, key), key)

    def _named(self, cls: type, arguments: dict[str, Any], key: str) -> dict[str, Any]:
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            self.unnamed.append(key)
        init_args = {name: self.of(each, f"{key}.{name}") for name, each in arguments.items()}
        return {"class_path": class_path(cls), **({"init_args": init_args} if init_args else {})}

    def _arguments(self, value: Any, key: str) -> dict[str, Any]:
        """Return the arguments with which an object was made: those that it keeps, or else its attributes."""
        attributes = getattr(value, "__dict__", {})
        if GIVEN in attributes:
            return dict(attributes[GIVEN])
        arguments = {}
        for name, parameter in inspect.signature(type(value)).parameters.items():
            attribute = name if name in attributes else f"_{name}"
            if attribute not in attributes:
                self.unnamed += [f"{key}.{name}"] if parameter.default is inspect.Parameter.empty else []
            elif not _is(attributes[attribute], parameter.default):
                arguments[name] = attributes[attribute]
        return arguments


def _plain(value: Any) -> Any:
    """Return a plain value as one of YAML: that of an enumeration, for example."""
    return next((kind(value) for kind in PLAIN if isinstance(value, kind)), None)


def _is(value: Any, default: Any) -> bool:
    return value is default or (
        isinstance(value, (*PLAIN, list, tuple)) and type(value) is type(default) and value == default
    )


def _named_arguments(value: partial[Any]) -> dict[str, Any] | None:
    """Return the arguments of a partial of a class by name; None if one of them has no name."""
    if not value.args:
        return dict(value.keywords)
    try:
        parameters = inspect.signature(value.func).parameters.values()
    except ValueError:  # a class of C without a signature
        return None
    names = [each.name for each in takewhile(lambda each: each.kind is each.POSITIONAL_OR_KEYWORD, parameters)]
    if len(names) < len(value.args):
        return None
    return {**dict(zip(names, value.args, strict=False)), **value.keywords}


def _is_routine(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, partial)


def _is_data(value: Any) -> bool:
    """Return whether a value is data, a data set or a net, which no short text can stand for."""
    return isinstance(value, Tensor | np.ndarray | torch.utils.data.Dataset | torch.nn.Module) and not hasattr(
        value, GIVEN
    )
