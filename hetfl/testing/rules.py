"""What the checks of all kinds share: objects to try, and rules that hold for everything that keeps a state."""

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
    """What can be checkpointed, and has settings by which a checkpoint knows it."""

    def settings(self) -> dict[str, object]:
        """Return the settings."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        ...


def require(holds: bool, rule: str, got: object) -> None:
    """Refuse an object that breaks a rule.

    Args:
        holds: whether it keeps the rule.
        rule: what was expected, and of which class.
        got: what came.

    Raises:
        AssertionError: it breaks the rule.
    """
    if not holds:
        raise AssertionError(f"Expected {rule} but got {got}")


def factory(given: T | Callable[[], T], kind: Callable[..., T]) -> Callable[[], T]:
    """Return what makes new objects: the given factory, or copies of the given object.

    Raises:
        AssertionError: what is made is not of the kind.
    """
    assert isinstance(kind, type)
    make: Any = partial(copy.deepcopy, given) if isinstance(given, kind) else given
    require(callable(make), f"a {kind.__name__}, or a function that makes one", type(given).__name__)
    made = make()
    require(isinstance(made, kind), f"a {kind.__name__}, or a function that makes one", type(made).__name__)
    found: Callable[[], T] = make
    return found


def through_a_file(state: dict[str, Any], name: str) -> Any:
    """Return a state as a resumed run reads it.

    Raises:
        AssertionError: it has something other than plain types and tensors.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)  # noqa: TID251 - plain types and tensors alone
    except Exception as error:  # whatever the unpickler refuses
        got = str(error).splitlines()[0]
        raise AssertionError(f"Expected {name}.state_dict to have plain types and tensors but got: {got}") from None


def check_settings(made: Stateful) -> None:
    """Refuse an object by whose settings a checkpoint would not know it: the constructor's arguments, kept by name.

    Raises:
        AssertionError: an argument is not among the settings.
    """
    arguments = inspect.signature(type(made)).parameters.values()
    named = {each.name for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    missing = sorted(named - made.settings().keys())
    rule = f"{type(made).__name__}.settings to have every argument of the constructor, under its name"
    require(not missing, rule, f"none for {', '.join(missing)}")


def same(one: object, other: object) -> bool:
    """Return whether two results, or states, are the same bits."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def random(seed: int) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)
