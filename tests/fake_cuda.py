"""A card that is not there: tensors that say they are on ``cuda``, refuse what a card refuses, and have values.

``torch._subclasses.FakeTensorMode`` has no values, and no backward pass on ``cuda`` without a driver: torch's engine
asks the driver for its streams. So a round cannot run under it. Here every tensor is on the CPU, and its storage is
marked if the program believes it to be on the card. Operations compute as always: a round gives the numbers of the CPU.

Two things are judged at every operation, also in the backward pass:

- *Mixed devices* raise :class:`MixedDevices`, as on a card: a CPU tensor with dimensions among those of the card, a
  generator of the CPU for numbers on the card, an array of a tensor on the card.
- *Waits*, at which the host waits for the card, are recorded with the line of the package that asked for them: a value
  (``item``, ``bool``, ``tolist``, ``equal``), a shape that depends on values (``nonzero``, a mask as an index), a copy
  between the devices that is not asynchronous from or to pinned memory.

What is left out: kernels themselves, streams, random numbers of a card, memory, and the speed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._C import _functorch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")
ROOT = Path(__file__).parents[1]
PACKAGE = tuple(str(ROOT / folder) for folder in ("hetfl", "aggregators", "models"))

aten = torch.ops.aten
COPIES = (aten.copy_, aten._foreach_copy_)
SHAPES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount)
VALUES = (aten._local_scalar_dense, aten.equal)
INDEXED = (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_, aten._unsafe_index)


class MixedDevices(RuntimeError):
    """An operation that a card refuses: its tensors or its generator are on two devices."""


@dataclass
class Card:
    """What a program did with the card.

    Attributes:
        waits: number of times that the host waited, by kind and line of the package.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)

    def wait(self, kind: str) -> None:
        """Record that the host waits for the card."""
        self.waits[kind, place()] += 1

    def lines(self, *functions: str) -> dict[str, int]:
        """Return the waits by line, those in given functions only, or all."""
        named = {f"{where}: {kind}": count for (kind, where), count in self.waits.items()}
        return {line: n for line, n in named.items() if not functions or line.split()[1].rstrip(":") in functions}


@contextmanager
def fake_card() -> Iterator[Card]:
    """Have a card during the context, on which tensors are that were made on or sent to ``cuda``."""
    card = Card()
    with ExitStack() as patched:
        for owner, name, stand_in in (
            (torch._C._nn, "_parse_to", _parsed),
            (torch._C, "_group_tensors_by_device_and_dtype", _grouped),
            (torch.cuda, "get_device_name", lambda device=None: "a card that is not there"),
        ):
            patched.enter_context(patch.object(owner, name, stand_in))
        patched.enter_context(_Functions(card))
        patched.enter_context(_Operations(card))
        yield card


def _parsed(*args: Any, _parse: Any = torch._C._nn._parse_to, **kwargs: Any) -> Any:
    """Return what ``Module.to`` is asked for; a tensor stands for its device."""
    device, *others = _parse(*args, **kwargs)
    there = any(isinstance(value, Tensor) and on_card(value) for value in (*args, *kwargs.values()))
    return CARD if there else device, *others


def _grouped(*args: Any, _group: Any = torch._C._group_tensors_by_device_and_dtype) -> Any:
    """Return the groups of an optimizer's tensors by the device that they say they are on."""
    groups = _group(*args).items()
    return {(CARD if on_card(lists[0][0]) else device, dtype): (lists, at) for (device, dtype), (lists, at) in groups}


def on_card(tensor: Tensor) -> bool:
    """Return whether a tensor is on the card."""
    return bool(getattr(_plain(tensor).untyped_storage(), "on_card", False))


def mark(tensor: Tensor, there: bool = True) -> Tensor:
    """Say of a new tensor whether it is on the card, and return it."""
    _plain(tensor).untyped_storage().on_card = there  # type: ignore[attr-defined]
    return tensor


def place() -> str:
    """Return the innermost line of the package that runs, as ``file:line function``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, tuple | list):
        for value in values:
            yield from _leaves(value)
    elif isinstance(values, dict):
        yield from _leaves(list(values.values()))
    else:
        yield values


def _plain(tensor: Tensor) -> Tensor:
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def _is_card(device: Any) -> bool:
    return isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")


GETTERS = {
    torch.Tensor.device.__get__: lambda there: CARD if there else HOST,
    torch.Tensor.is_cuda.__get__: lambda there: there,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda there: not there,  # type: ignore[attr-defined]
    torch.Tensor.get_device: lambda there: 0 if there else -1,
}
MOVES = (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda)
ARRAYS = (torch.Tensor.numpy, torch.Tensor.__array__)


class _Functions(TorchFunctionMode):
    """Answers for a tensor's device, and makes and moves tensors."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in GETTERS:
            return GETTERS[func](on_card(args[0]))  # type: ignore[no-untyped-call]
        if func in MOVES:
            return self._moved(func, args, given)
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.untyped_storage().pinned = True
            return pinned
        if func in ARRAYS and on_card(args[0]):
            raise MixedDevices(f"no array of a tensor on the card, at {place()}")
        if func is torch.Tensor.tolist and on_card(args[0]):
            self.card.wait("values")
        if func is torch.Tensor.new_tensor:
            given.setdefault("device", CARD if on_card(args[0]) else HOST)
        return self._made(func, args, given)

    def _made(self, func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
        if given.get("device") is None:
            return func(*args, **given)
        there, given["device"] = _is_card(given["device"]), HOST
        if there and given.get("generator") is not None:
            raise MixedDevices(f"a generator of the CPU for numbers on the card, at {place()}")
        if there and func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            self.card.wait("copy to the card")
        made = func(*args, **given)
        if isinstance(made, Tensor):
            mark(made, there)
        return made

    def _moved(self, func: Any, args: Sequence[Any], given: dict[str, Any]) -> Tensor:
        tensor, *others = args
        before = there = on_card(tensor)
        flags = [value for value in others if isinstance(value, bool)]
        dtype, like = given.get("dtype"), given.get("other")
        for value in (given.get("device"), like, *others):
            if isinstance(value, Tensor):
                there, dtype = on_card(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                there = _is_card(value)
        if func is not torch.Tensor.to:
            there = func is torch.Tensor.cuda
        asynchronous = bool(given.get("non_blocking", flags[0] if flags else False))
        if there != before and not (asynchronous and (before or _is_pinned(tensor))):
            self.card.wait("copy to the card" if there else "copy from the card")
        copy = there != before or given.get("copy", False)
        result = torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy)
        return mark(result, there) if copy else result


def _is_pinned(tensor: Tensor) -> bool:
    return bool(getattr(tensor.untyped_storage(), "pinned", False))


class _Operations(TorchDispatchMode):
    """Judges every operation on tensors of the card, and marks its results."""

    def __init__(self, card: Card) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        leaves = list(_leaves((args, given)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(map(on_card, tensors)):
            return func(*args, **given)
        packet = func._overloadpacket
        if packet in COPIES:
            self._copied(packet, args, given)
            return func(*args, **given)
        if any(isinstance(leaf, torch.Generator) and leaf.device == HOST for leaf in leaves):
            raise MixedDevices(f"a generator of the CPU for numbers on the card, at {place()}")
        self._judge(func, packet, args, given, tensors)
        results = func(*args, **given)
        for result in _leaves(results):
            if isinstance(result, Tensor):
                mark(result)
        return results

    def _copied(self, packet: Any, args: Sequence[Any], given: Mapping[str, Any]) -> None:
        flag = 2 if len(args) > 2 else None
        asynchronous = given.get("non_blocking", args[flag] if flag else False)
        targets, sources = ([each] if isinstance(each, Tensor) else each for each in args[:2])
        for target, source in zip(targets, sources, strict=True):
            there = on_card(target)
            if there != on_card(source) and not (asynchronous and (not there or _is_pinned(source))):
                self.card.wait("copy to the card" if there else "copy from the card")

    def _judge(
        self, func: Any, packet: Any, args: Sequence[Any], given: Mapping[str, Any], tensors: Sequence[Tensor]
    ) -> None:
        strangers = [tensor for tensor in tensors if not on_card(tensor)]
        if packet in INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(not on_card(index) for index in indices):
                self.card.wait("copy to the card")  # torch copies an index of the CPU
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.card.wait("shape")
            strangers = [tensor for tensor in strangers if all(tensor is not index for index in indices)]
        elif packet in VALUES:
            self.card.wait("values")
        elif packet in SHAPES or (packet is aten.repeat_interleave and given.get("output_size") is None):
            self.card.wait("shape")
        changed = func._schema.is_mutable and isinstance(args[0], Tensor) and not on_card(args[0])
        if changed or any(tensor.dim() for tensor in strangers):
            shapes = ", ".join(f"{'card' if on_card(t) else 'CPU'} {tuple(t.shape)}" for t in tensors)
            raise MixedDevices(f"{func} of tensors on two devices ({shapes}), at {place()}")
