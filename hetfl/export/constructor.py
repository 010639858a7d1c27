"""The constructor call of a net: recording it, and building a net from a card without running untrusted code."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card, Constructor, plain
from hetfl.export.formats import reason
from hetfl.types import Level, NetFactory

OWN = "hetfl.models"
"""The package whose nets can be built from a card without a user's constructor."""


def class_path(kind: type) -> str:
    """Return the shortest path under which a class can be imported, as in YAML.

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
    """Return a new net, and its constructor call.

    ``build`` may be any function, whose arguments are unknown. Therefore the constructor of the net's class is wrapped
    during the call, and records its arguments.

    Args:
        build: builds the net; it is called twice and must return equal nets.
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
    """Record each new object of a class with its arguments; the first argument is the object."""
    original, has_init = kind.__init__, "__init__" in vars(kind)  # type: ignore[misc]
    signature = inspect.signature(original)
    calls: list[tuple[object, inspect.BoundArguments]] = []

    @functools.wraps(original)
    def init(self: object, *args: Any, **kwargs: Any) -> None:
        if type(self) is kind:  # not a call from a subclass
            calls.append((self, signature.bind(self, *args, **kwargs)))
        original(self, *args, **kwargs)

    type.__setattr__(kind, "__init__", init)
    try:
        yield calls
    finally:
        if has_init:
            type.__setattr__(kind, "__init__", original)
        else:
            type.__delattr__(kind, "__init__")


def make(card: Card, net: NetFactory | None) -> nn.Module:
    """Return a new net of the level of a card, in its dtype.

    Args:
        card: the constructor call of the net, and its level.
        net: the user's class, called with the arguments of the card; or another constructor, called with the sizes of
            the level; None: class and arguments of the card.

    Raises:
        ConfigurationError: the class in the card is not a net of hetfl, or its constructor fails with the arguments.
    """
    with torch.random.fork_rng(devices=[]):
        if net is not None and not is_of_card(card, net):
            return net(**_level_arguments(net, card.level)).to(card.torch_dtype)
        kind, arguments = net or own_net(card.net), card.net.arguments
        if kind is None or arguments is None:
            raise ConfigurationError(
                f"Expected a constructor, as in hetfl.load(path, net=MyNet), but got none: the card names "
                f"{card.net!s:.200}, and only nets of {OWN} with plain arguments are made from a card"
            )
        try:
            return kind(**arguments).to(card.torch_dtype)
        except Exception as error:  # arguments from a file may cause any error
            raise ConfigurationError(
                f"Expected a net from the card's {card.net!s:.200} but got: {reason(error)}"
            ) from None


def is_of_card(card: Card, net: NetFactory | None) -> bool:
    """Return whether a net is made with the arguments of its card: without a user's constructor, or with a class."""
    return net is None or (isinstance(net, type) and card.net.arguments is not None)


@contextmanager
def limited(most: int) -> Iterator[None]:
    """Let nets that this thread makes meanwhile have at most so many parameters.

    Raises:
        ConfigurationError: in the constructor that makes one more.
    """
    thread, count = threading.get_ident(), 0

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ConfigurationError(f"Expected a net of at most {most} parameters but got more")

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()


def own_net(constructor: Constructor) -> type[nn.Module] | None:
    """Return the class of a constructor call if it is a net of :mod:`hetfl.models`; None for any other class.

    Nothing outside that package is imported.
    """
    match = re.fullmatch(rf"({re.escape(OWN)}(?:\.[a-z]\w*)?)\.([A-Z]\w*)", constructor.path, re.ASCII)
    try:
        kind = None if match is None else getattr(importlib.import_module(match[1]), match[2], None)
    except ImportError:
        return None
    # A class that the package only imports is not one of its nets.
    is_own = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith(f"{OWN}.")
    return kind if is_own else None


def _level_arguments(net: NetFactory, level: Level) -> dict[str, Any]:
    """Return a level's sizes as arguments, without those of None and without a width of 1 that is no parameter."""
    sizes = {"width": level.width, "depth": level.depth, "rank": level.rank}
    arguments: dict[str, Any] = {axis: size for axis, size in sizes.items() if size is not None}
    parameters = inspect.signature(net).parameters.values()
    if level.width == 1.0 and not any(p.name == "width" or p.kind is p.VAR_KEYWORD for p in parameters):
        del arguments["width"]
    return arguments
