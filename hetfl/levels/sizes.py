"""The sizes that a net comes in, and a net at a size: what levels and budgets are made of."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from hetfl.arguments import suggestion
from hetfl.errors import ConfigurationError
from hetfl.models import Scaler
from hetfl.types import NetFactory

REFUSALS = (ValueError, AssertionError)
"""What constructors raise for a size that a net does not come in: channels of a group norm, heads of an attention."""
ROUNDING = 1e-7
"""Widths closer than this are one: nets round a little differently at the step itself."""


class Size(NamedTuple):
    """A width of the net itself, exactly, and a depth; None leaves the net's own."""

    width: Fraction = Fraction(1)
    depth: int | None = None

    def make(self, net: NetFactory) -> nn.Module:
        """Return a new net of this size."""
        return make_net(net, width=float(self.width), depth=self.depth)

    def __str__(self) -> str:
        """Return it as a message has it."""
        return f"width {self.width}" if self.depth is None else f"depth {self.depth}"


CostOf = Callable[[Size], float | None]
"""What a sub-model costs; None if the net does not come in that size."""


def make_net(factory: NetFactory, *, width: float = 1.0, depth: int | None = None) -> nn.Module:
    """Return a new net of a width and depth; a net without a width of its own is fine at width 1.

    Args:
        factory: the net's class, or a class with some arguments bound.
        width: ratio of the hidden channels.
        depth: number of stages; None leaves the net's own.

    Raises:
        ConfigurationError: it builds no net; its constructor does not take the axis that is asked for, or an argument
            that is bound; or a layer learns its size from the data.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        got = f"an object of {type(factory).__name__}" if isinstance(factory, nn.Module) else type(factory).__name__
        raise ConfigurationError(f"Expected a class or function as net, which builds the net of a level, but got {got}")
    arguments: dict[str, float] = {"width": width} if depth is None else {"width": width, "depth": depth}
    net = _call(factory, arguments)
    if not isinstance(net, nn.Module):
        raise ConfigurationError(f"Expected a net that is a torch.nn.Module but got {type(net).__name__}")
    for name, layer in net.named_modules():
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]
            raise ConfigurationError(
                f"Expected layers that are given their sizes but got {name!r}, a {type(layer).__name__}, in "
                f"{type(net).__name__}: write torch.nn.Linear(in_features, ...) or the like"
            )
    return net


def _call(factory: NetFactory, arguments: Mapping[str, float]) -> nn.Module:
    try:
        return factory(**arguments)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is not None and unknown[1] in getattr(factory, "keywords", {}):
            known = list(inspect.signature(factory.func).parameters)  # type: ignore[attr-defined]
            near = suggestion(unknown[1], known)
            raise ConfigurationError(f"Expected arguments that the net takes but got {unknown[1]!r}{near}") from None
        if unknown is None or unknown[1] not in arguments:
            raise
        if unknown[1] == "width" and arguments["width"] == 1.0:
            return _call(factory, {axis: size for axis, size in arguments.items() if axis != "width"})
        raise ConfigurationError(
            f"Expected a net whose constructor takes {unknown[1]!r}, which levels of different {unknown[1]} need, "
            f"but got: {error}"
        ) from None


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a net whose tensors have shapes alone, and no memory; a whole one if its constructor looks at values."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, TypeError):
        return build()


def rescale(net: nn.Module, whole: float) -> None:
    """Make the Scalers of a net relative to a global model that is itself a cut of the net (the paper's ``b1-e1``).

    Args:
        net: the net of a level; its :class:`~hetfl.models.Scaler` layers have its own width.
        whole: the width of the global model.
    """
    for module in net.modules():
        if isinstance(module, Scaler):
            module.width = module.width / whole


def largest_within(sizes: Sequence[Size], limit: float, cost: CostOf) -> Size | None:
    """Return the last size whose cost is within a limit, by bisection; None if there is none.

    Between two widths the net may come in more sizes, if its channels are not rounded up exactly: those are looked
    through too.

    Args:
        sizes: in the order of rising cost.
        limit: what may be reached, not exceeded.
        cost: of a size; sizes without one are passed over.
    """
    best: int | None = None
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        there = next((i for i in range(middle, low - 1, -1) if cost(sizes[i]) is not None), None)
        if there is None:
            low = middle + 1
        elif (cost(sizes[there]) or 0.0) <= limit:
            best, low = there, middle + 1
        else:
            high = there
    if best is None:
        return None
    above = next((size for size in sizes[best + 1 :] if cost(size) is not None), None)
    return sizes[best] if above is None or above.depth is not None else _between(sizes[best], above, limit, cost)


def _between(below: Size, above: Size, limit: float, cost: CostOf) -> Size:
    """Return the largest size within a limit between two widths, the second of which exceeds it."""

    def fits(width: float) -> bool:
        found = cost(Size(Fraction(width)))
        return found is not None and found <= limit

    low, high = float(below.width) + ROUNDING, float(above.width) - ROUNDING
    if high < low or not fits(low):
        return below
    if fits(high):
        low = high
    while high - low > ROUNDING:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    best = Size(Fraction(low))
    if cost(best) == cost(below):
        return below
    short = (Size(best.width.limit_denominator(most)) for most in (100, 10_000, 1_000_000))
    return next((size for size in short if below.width < size.width < above.width and cost(size) == cost(best)), best)


def widths_of(net: NetFactory) -> list[Size]:
    """Return the widths k/C at which a net of C hidden channels gets one more, for all of its hidden sizes; rising.

    Hidden sizes are those that shrink with the width.

    Raises:
        ConfigurationError: the net does not come in smaller widths.
    """
    full = shapes(Size(), net)
    for width in (Fraction(1, 2), Fraction(3, 4), Fraction(1, 4), Fraction(1, 8)):
        try:
            narrow = shapes(Size(width), net)
        except REFUSALS as error:
            reason = first_line(error)
            continue
        hidden = {
            whole
            for name, shape in full.items()
            for whole, part in zip(shape, narrow.get(name, ()), strict=False)
            if part < whole
        }
        widths = {Fraction(k, size) for size in hidden for k in range(1, size + 1)}
        return [Size(width) for width in sorted({*widths, Fraction(1)})]
    raise ConfigurationError(reason)


def depths_of(net: NetFactory, cost: CostOf, full: float) -> list[Size]:
    """Return the depths from 1 up to the net's own.

    Args:
        net: builds the net.
        cost: of a size.
        full: the cost of the net at its own depth.

    Raises:
        ConfigurationError: the net does not come in depths.
    """
    sizes: list[Size] = []
    for depth in itertools.count(1):
        here, before = cost(Size(depth=depth)), cost(sizes[-1]) if sizes else 0.0
        if here is None or here > full or here <= (before or 0.0):
            break
        sizes.append(Size(depth=depth))
    if not sizes:
        try:
            Size(depth=1).make(net)
        except REFUSALS as error:
            raise ConfigurationError(first_line(error)) from None
        raise ConfigurationError("Expected a net that is smaller at depth 1 but got one that is larger")
    return sizes


def shapes(size: Size, net: NetFactory) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a net's parameters by name."""
    made = without_values(lambda: size.make(net))
    return {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}


def first_line(error: Exception) -> str:
    """Return what an error says, on one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
