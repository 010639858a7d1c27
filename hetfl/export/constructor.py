"""How a net was made, found out from its class; and a net made again from a card, without running a stranger's code."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card, Constructor, plain
from hetfl.export.formats import reason
from hetfl.types import Level, NetFactory

OWN = "hetfl.models"
"""The package whose nets are made from a card alone."""


def class_path(kind: type) -> str:
    """Return the shortest path under which a class can be imported: what YAML has.

    >>> from hetfl.data import ImageTransform
    >>> class_path(ImageTransform)
    'hetfl.data.ImageTransform'
    """
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if getattr(sys.modules.get(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def construct(build: Callable[[], nn.Module]) -> tuple[nn.Module, Constructor]:
    """Return a new net, and the call of its class that made it.

    What builds a net may be a class, a class with arguments bound, any function, or what the command line passes for
    one. So the class itself is asked: while the net is built, its constructor notes its arguments.

    Args:
        build: builds the net; called twice, with the same result.
    """
    kind = type(build())
    with _noted(kind) as calls:
        net = build()
    arguments: dict[str, Any] | None = None
    call = next((call for made, call in calls if made is net), None)
    if call is not None and all(p.kind is not p.VAR_POSITIONAL for p in call.signature.parameters.values()):
        call.apply_defaults()
        keyword = {p.name for p in call.signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        named = {name: value for name, value in list(call.arguments.items())[1:] if name not in keyword}
        try:
            arguments = plain(named | {k: v for name in keyword for k, v in call.arguments[name].items()})
        except TypeError:
            arguments = None
    return net, Constructor(class_path(kind), arguments)


@contextmanager
def _noted(kind: type) -> Iterator[list[tuple[object, inspect.BoundArguments]]]:
    """Note each object of a class that is made meanwhile, with its arguments, the object itself first."""
    original, own = kind.__init__, "__init__" in vars(kind)  # type: ignore[misc]
    signature = inspect.signature(original)
    calls: list[tuple[object, inspect.BoundArguments]] = []

    @functools.wraps(original)
    def init(self: object, *args: Any, **kwargs: Any) -> None:
        if type(self) is kind:  # not as the base of a subclass
            calls.append((self, signature.bind(self, *args, **kwargs)))
        original(self, *args, **kwargs)

    type.__setattr__(kind, "__init__", init)
    try:
        yield calls
    finally:
        if own:
            type.__setattr__(kind, "__init__", original)
        else:
            type.__delattr__(kind, "__init__")


def make(card: Card, net: NetFactory | None) -> nn.Module:
    """Return a new net of a card's level, in the card's dtype.

    Args:
        card: what made the net, and its level.
        net: the user's constructor, called with the level's width and depth; None: the card's class and arguments.

    Raises:
        ConfigurationError: the card names a class that is none of hetfl's own nets, or its arguments make no net.
    """
    with torch.random.fork_rng(devices=[]):
        if net is not None:
            return net(**_level_arguments(net, card.level)).to(card.torch_dtype)
        kind, arguments = own_net(card.net), card.net.arguments
        if kind is None or arguments is None:
            raise ConfigurationError(
                f"Expected a constructor, as in hetfl.load(path, net=MyNet), but got none: the card names "
                f"{card.net!s:.200}, and only nets of {OWN} with plain arguments are made from a card"
            )
        try:
            return kind(**arguments).to(card.torch_dtype)
        except Exception as error:  # whatever arguments out of a file may lead to
            raise ConfigurationError(
                f"Expected a net from the card's {card.net!s:.200} but got: {reason(error)}"
            ) from None


def own_net(constructor: Constructor) -> type[nn.Module] | None:
    """Return the class that a constructor names if it is one of :mod:`hetfl.models`; None for any other.

    Nothing outside that package is imported or looked at, whatever the name.
    """
    found = re.fullmatch(rf"({re.escape(OWN)}(?:\.[a-z]\w*)?)\.([A-Z]\w*)", constructor.path, re.ASCII)
    try:
        kind = None if found is None else getattr(importlib.import_module(found[1]), found[2], None)
    except ImportError:
        return None
    # What the package has only imported itself is none of its nets.
    own = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith(f"{OWN}.")
    return kind if own else None


def _level_arguments(net: NetFactory, level: Level) -> dict[str, Any]:
    """Return width and depth as a constructor takes them: a depth of None and a width that it lacks are left out."""
    arguments: dict[str, Any] = {"width": level.width}
    if level.depth is not None:
        arguments["depth"] = level.depth
    parameters = inspect.signature(net).parameters.values()
    if level.width == 1.0 and not any(p.name == "width" or p.kind is p.VAR_KEYWORD for p in parameters):
        del arguments["width"]
    return arguments
