"""Checks the names and classes of a constructor's arguments before the constructor runs."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from hetfl.errors import ConfigurationError

T = TypeVar("T")
GIVEN = "_given_arguments"
"""Attribute of an object: the arguments that it was made with, by name."""


def checked(cls: type[T]) -> type[T]:
    """Make a class refuse unknown arguments, and objects of another class than its annotations name.

    The class itself checks numbers and text. For a subclass, the arguments that it passes to this class are checked.
    The objects keep their arguments; see :func:`kept`.
    """
    construct: Callable[..., None] = cls.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        check_arguments(construct, type(self).__name__, (self, *args), kwargs)
        construct(self, *args, **kwargs)

    __init__.__signature__ = inspect.signature(construct)  # type: ignore[attr-defined]
    cls.__init__ = kept(__init__)  # type: ignore[method-assign]
    return cls


def kept(construct: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that keeps its arguments in the object, under :data:`GIVEN`.

    The constructor of a subclass that calls this one keeps its own instead.
    """
    names = list(inspect.signature(construct).parameters)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if GIVEN not in self.__dict__:
            given = {**dict(zip(names, (self, *args), strict=False)), **kwargs}
            # object's: the class may be frozen, or a module that is not set up yet
            object.__setattr__(self, GIVEN, {name: value for name, value in given.items() if value is not self})
        construct(self, *args, **kwargs)

    return __init__


def keep_arguments(cls: type) -> None:
    """Let objects of a class with a constructor of its own keep their arguments."""
    if "__init__" in vars(cls):
        cls.__init__ = kept(cls.__init__)  # type: ignore[misc]


def check_arguments(construct: Callable[..., None], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of a constructor.

    Args:
        construct: the constructor.
        name: of the class, for messages.
        args: given by position, the object first.
        kwargs: given by name.

    Raises:
        ConfigurationError: there is no argument of a name, or the argument is of another class.
    """
    parameters = list(inspect.signature(construct).parameters)
    for unknown in kwargs.keys() - set(parameters):
        raise ConfigurationError(f"Expected arguments of {name} but got {unknown!r}{suggestion(unknown, parameters)}")
    for argument, value in {**dict(zip(parameters, args, strict=False)), **kwargs}.items():
        wrong = _mismatch(value, _hints(construct).get(argument))
        if wrong:
            raise ConfigurationError(f"Expected {wrong[0]} as {argument} of {name} but got {wrong[1]}")


def choice(name: str, value: T, choices: Any) -> T:
    """Return the value of a setting that has a few choices.

    Args:
        name: of the setting.
        value: its value.
        choices: a ``Literal`` of the values that it may have.

    Raises:
        ConfigurationError: it is none of them.
    """
    known = [str(each) for each in typing.get_args(choices)]
    if value not in typing.get_args(choices):
        texts = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ConfigurationError(f"Expected {name} to be {texts} but got {value!r}")
    return value


def whole(name: str, value: Any) -> int:
    """Return a setting that is a whole number.

    Args:
        name: of the setting.
        value: its value.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigurationError(f"Expected {name} to be a whole number but got {value!r:.60}") from None


def real(name: str, value: Any) -> float:
    """Return a setting that is a number.

    Args:
        name: of the setting.
        value: its value.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(value, Real):
        raise ConfigurationError(f"Expected {name} to be a number but got {value!r:.60}")
    return value  # type: ignore[return-value]


def suggestion(unknown: str, known: Sequence[str]) -> str:
    """Return a question that names the nearest known word; empty if none is near.

    >>> suggestion("widht", ["depth", "width"])
    ": did you mean 'width'?"
    """
    near = difflib.get_close_matches(unknown, known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""


@functools.cache
def _hints(construct: Callable[..., None]) -> dict[str, Any]:
    return typing.get_type_hints(construct)


def _mismatch(value: Any, hint: Any) -> tuple[str, str] | None:
    """Return texts of what an annotation expects and what was given; None if they match, or if this is unknown."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        mismatches = [_mismatch(value, each) for each in inner if each is not type(None)]
        if (value is None and len(mismatches) < len(inner)) or None in mismatches:
            return None
        return " or ".join(each[0] for each in mismatches if each), mismatches[0][1] if mismatches[0] else ""
    if isinstance(origin, type) and issubclass(origin, Mapping):
        items = value.items() if isinstance(value, Mapping) else ()
        wrong = [f"{_named(each)} for {key!r}" for key, each in items if _mismatch(each, inner[1])]
        return _unless(isinstance(value, Mapping), wrong, f"a dict of {_words(inner[1])} by name", value)
    if origin is list:
        wrong = [f"{_named(each)} in it" for each in value if _mismatch(each, inner[0])] if _listed(value) else []
        return _unless(_listed(value), wrong, f"a list of {_words(inner[0])}", value)
    ours = isinstance(hint, type) and hint.__module__.startswith("hetfl.") and not getattr(hint, "_is_protocol", False)
    return _unless(not ours or isinstance(value, hint), [], article(_words(hint)), value)


def _unless(right: bool, wrong: Sequence[str], expected: str, value: Any) -> tuple[str, str] | None:
    return None if right and not wrong else (expected, wrong[0] if wrong else _named(value))


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def article(name: str) -> str:
    """Return a name with its article."""
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _named(value: Any) -> str:
    """Return the name of a value's class; a class that was given in place of an object is called a class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
