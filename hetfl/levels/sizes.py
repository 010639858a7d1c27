"""The possible sizes of a net, and the construction of a net of a size, for levels and budgets."""

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
"""Errors that constructors raise for an impossible size, such as channels that a group norm cannot divide."""
ROUNDING = 1e-7
"""Widths closer than this are treated as equal, because nets round differently exactly at a step."""


class Size(NamedTuple):
    """An exact width relative to the net, and a depth; None: the default depth of the net."""

    width: Fraction = Fraction(1)
    depth: int | None = None

    def make(self, net: NetFactory) -> nn.Module:
        """Return a new net of this size."""
        return make_net(net, width=float(self.width), depth=self.depth)

    def __str__(self) -> str:
        """Return the size as text for messages."""
        return f"width {self.width}" if self.depth is None else f"depth {self.depth}"


CostOf = Callable[[Size], float | None]
"""Returns the cost of a sub-model; None if the net cannot have that size."""


def make_net(
    factory: NetFactory, *, width: float = 1.0, depth: int | None = None, rank: int | None = None
) -> nn.Module:
    """Return a new net of a width, depth and rank; at width 1 the constructor need not take ``width``.

    Args:
        factory: the class of the net, or the class with bound arguments.
        width: ratio of the hidden channels.
        depth: number of stages; None: the default depth of the net.
        rank: rank of the adapters; None: the default rank of the net.

    Raises:
        ConfigurationError: the factory does not build a net; its constructor does not take the axis or a bound
            argument; or a layer is lazy, so that its size depends on the data.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        got = f"an object of {type(factory).__name__}" if isinstance(factory, nn.Module) else type(factory).__name__
        raise ConfigurationError(f"Expected a class or function as net, which builds the net of a level, but got {got}")
    sizes = {"width": width, "depth": depth, "rank": rank}
    arguments: dict[str, float] = {axis: size for axis, size in sizes.items() if size is not None}
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
    """Return a net on the meta device, whose tensors have no values; a real net if its constructor reads values."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, TypeError):
        return build()


def rescale(net: nn.Module, whole: float) -> None:
    """Make the Scalers of a net relative to a global model whose own width is below 1 (``b1-e1`` in the paper).

    Args:
        net: the net of a level; its :class:`~hetfl.models.Scaler` layers have widths relative to the full net.
        whole: the width of the global model relative to the full net.
    """
    for module in net.modules():
        if isinstance(module, Scaler):
            module.width = module.width / whole


def largest_within(sizes: Sequence[Size], limit: float, cost: CostOf) -> Size | None:
    """Return the last size whose cost is at most a limit, by bisection; None if there is none.

    A net that does not round its channels up may have more sizes between two widths of the list; these are searched
    too.

    Args:
        sizes: sizes in the order of rising cost.
        limit: the largest accepted cost.
        cost: returns the cost of a size; sizes without a cost are skipped.
    """
    best: int | None = None
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        tested = next((i for i in range(middle, low - 1, -1) if cost(sizes[i]) is not None), None)
        if tested is None:
            low = middle + 1
        elif (cost(sizes[tested]) or 0.0) <= limit:
            best, low = tested, middle + 1
        else:
            high = tested
    if best is None:
        return None
    above = next((size for size in sizes[best + 1 :] if cost(size) is not None), None)
    return sizes[best] if above is None or above.depth is not None else _between(sizes[best], above, limit, cost)


def _between(below: Size, above: Size, limit: float, cost: CostOf) -> Size:
    """Return the largest size within a limit between two widths, of which ``above`` exceeds the limit."""

    def fits(width: float) -> bool:
        size_cost = cost(Size(Fraction(width)))
        return size_cost is not None and size_cost <= limit

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
    """Return the widths k/C, k = 1..C, for all hidden sizes C of a net, in ascending order.

    Hidden sizes are those that shrink with the width. At width k/C a layer of C channels has k channels.

    Raises:
        ConfigurationError: the net has no smaller widths.
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
    """Return the depths from 1 to the default depth of a net.

    Args:
        net: builds the net.
        cost: returns the cost of a size.
        full: the cost of the net at its default depth.

    Raises:
        ConfigurationError: the net has no depths.
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
    """Return the shapes of the parameters of a net by name."""
    made = without_values(lambda: size.make(net))
    return {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, or else its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
