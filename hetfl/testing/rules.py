"""Helpers that all contract checks share: objects to test, and rules for everything that has a state."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Stateful(Protocol):
    """An object with a state for checkpoints, and settings that a checkpoint is compared with."""

    def settings(self) -> dict[str, object]:
        """Return the settings."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        ...


def require(holds: bool, rule: str, got: object) -> None:
    """Refuse an object that breaks a rule.

    Args:
        holds: whether the rule is kept.
        rule: what was expected, with the name of the class.
        got: what was observed instead.

    Raises:
        AssertionError: the rule is broken.
    """
    if not holds:
        raise AssertionError(f"Expected {rule} but got {got}")


def factory(given: T | Callable[[], T], kind: Callable[..., T]) -> Callable[[], T]:
    """Return a function that makes new objects: the given function, or one that copies the given object.

    Raises:
        AssertionError: the function makes an object of another kind.
    """
    assert isinstance(kind, type)
    make: Any = partial(copy.deepcopy, given) if isinstance(given, kind) else given
    require(callable(make), f"a {kind.__name__}, or a function that makes one", type(given).__name__)
    made = make()
    require(isinstance(made, kind), f"a {kind.__name__}, or a function that makes one", type(made).__name__)
    typed: Callable[[], T] = make
    return typed


def through_a_file(state: dict[str, Any], name: str) -> Any:
    """Return a state after it was saved and loaded, as in a resumed run.

    Raises:
        AssertionError: the state has something other than plain types and tensors.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)  # noqa: TID251 - only plain types and tensors
    except Exception as error:  # the unpickler raises many kinds of errors
        got = str(error).splitlines()[0]
        raise AssertionError(f"Expected {name}.state_dict to have plain types and tensors but got: {got}") from None


def check_settings(made: Stateful) -> None:
    """Refuse an object whose settings lack an argument of the constructor, because checkpoints compare the settings.

    Raises:
        AssertionError: an argument is not among the settings.
    """
    arguments = inspect.signature(type(made)).parameters.values()
    named = {each.name for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    missing = sorted(named - made.settings().keys())
    rule = f"{type(made).__name__}.settings to have every argument of the constructor, under its name"
    require(not missing, rule, f"none for {', '.join(missing)}")


def same(one: object, other: object) -> bool:
    """Return whether two results or states are equal; NaN in a tensor equals NaN."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def random(seed: int) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)
