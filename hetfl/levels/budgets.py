"""Levels by cost: for each budget, the largest sub-model along one axis whose cost is within it."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from hetfl import wire
from hetfl.errors import ConfigurationError
from hetfl.levels.sizes import (
    REFUSALS,
    CostOf,
    Size,
    depths_of,
    first_line,
    largest_within,
    widths_of,
    without_values,
)
from hetfl.local.flops import flops_per_sample
from hetfl.submodel import buffers_of, parameters_of
from hetfl.types import Level, NetFactory

Cost = Literal["params", "flops", "upload_bytes"]
"""Unit of a budget: parameters, training FLOPs of one sample, or bytes of the dense upload of a round."""

Axis = Literal["width", "depth"]
"""The dimension along which a net is made smaller."""

UNITS: Mapping[Cost, str] = {"params": "parameters", "flops": "training FLOPs a sample", "upload_bytes": "bytes up"}
"""Name of the unit of each cost."""


@dataclass(frozen=True)
class Allowance:
    """The cost limit of a level, and the cost of its sub-model.

    Attributes:
        budget: fraction of the cost of the reference.
        limit: the budget times the cost of the reference.
        cost: the cost of the sub-model, at most ``limit``.
        size: the size of the sub-model. Its width is relative to the net, while the width of a level is relative to the
            global model.
    """

    budget: float
    limit: float
    cost: float
    size: Size


@dataclass(frozen=True)
class Budgets:
    """Cost budgets, as an alternative to levels. The largest sub-model within each budget becomes a level.

    Levels are named a, b, c, ... in the order of the budgets. The first level is the global model. If its budget is
    smaller than the net, the global model is a sub-model of the net, and the widths of the other levels are relative to
    it. To compare methods with different nets at equal budgets, give them the same ``reference``. The size of a net
    changes in steps of channels or stages, so two budgets may give the same sub-model.

    Args:
        by: the unit of the budgets. ``params``: parameters; ``flops``: training FLOPs of one sample; ``upload_bytes``:
            bytes of a dense upload of the whole sub-model, even if the method leaves out some entries (labels that a
            client lacks, shallow heads).
        budgets: fractions of the cost of the reference, in descending order.
        axis: width or depth; null: the axis of the method.
        reference: the cost of a budget of 1: a number (of parameters, FLOPs or bytes), or the class of a net, at its
            full size; null: the net of the run.
        sample_shape: shape of one input of the net, such as ``[1, 28, 28]``; only for ``flops``.
        sample_type: ``float``, or ``int64`` for token ids.

    Raises:
        ConfigurationError: an argument is out of range, missing, or not used with this ``by``.
    """

    by: Cost
    budgets: list[float]
    axis: Axis | None = None
    reference: float | NetFactory | None = None
    sample_shape: list[int] | None = None
    sample_type: Literal["float", "int64"] = "float"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.by not in UNITS:
            raise ConfigurationError(f"Expected by in {tuple(UNITS)} for levels but got {self.by!r}")
        if self.axis not in ("width", "depth", None):
            raise ConfigurationError(f"Expected axis width, depth or null for levels but got {self.axis!r}")
        _check_budgets(self.budgets)
        if self.reference is None and self.budgets[0] > 1:
            raise ConfigurationError(
                f"Expected budgets in (0, 1], fractions of the net, but got {self.budgets[0]}: more than 1 "
                "needs a reference"
            )
        if isinstance(self.reference, int | float) and not 0 < self.reference < math.inf:
            raise ConfigurationError(f"Expected a positive reference for budgets but got {self.reference}")
        if (self.by == "flops") != (self.sample_shape is not None):
            raise ConfigurationError(
                "Expected sample_shape, the shape of an input such as [1, 28, 28], for budgets by flops and no others, "
                f"but got {self.sample_shape} by {self.by}"
            )
        if self.sample_shape is not None and min(self.sample_shape, default=0) < 1:
            raise ConfigurationError(f"Expected positive sizes in sample_shape but got {self.sample_shape}")
        if self.sample_type not in ("float", "int64"):
            raise ConfigurationError(f"Expected sample_type float or int64 but got {self.sample_type!r}")

    def choose(self, net: NetFactory, own_axis: Axis) -> tuple[dict[str, Level], dict[str, Allowance]]:
        """Return the levels, and the allowance of each by name.

        Args:
            net: builds the net of the run.
            own_axis: the axis of the method, which is used if ``axis`` is null.

        Raises:
            ConfigurationError: the net has no sizes along the axis; or no sub-model is within a budget (the message has
                the cost of the smallest sub-model).
        """

        @cache
        def cost(size: Size) -> float | None:
            try:
                return self.cost(lambda: size.make(net))
            except REFUSALS:
                return None

        with torch.random.fork_rng(devices=[]):
            full = self.cost(lambda: Size().make(net))
            sizes = widths_of(net) if (self.axis or own_axis) == "width" else depths_of(net, cost, full)
            whole = full if self.reference is None else self._reference_cost(self.reference)
            allowances = {
                name: self._allowance(name, budget, budget * whole, sizes, cost)
                for name, budget in zip(string.ascii_lowercase, self.budgets, strict=False)
            }
        global_width = allowances["a"].size.width
        levels = {
            name: Level(name, float(allowed.size.width / global_width), allowed.size.depth)
            for name, allowed in allowances.items()
        }
        return levels, allowances

    def cost(self, build: Callable[[], nn.Module]) -> float:
        """Return the cost of a net in the unit of ``by``.

        Args:
            build: builds the net.

        Raises:
            ConfigurationError: the net does not take samples of ``sample_shape``.
        """
        try:
            return self._cost(without_values(build))
        except (RuntimeError, TypeError, ValueError, IndexError):
            net = build()  # its forward reads values, or it fails again below
        try:
            return self._cost(net)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ConfigurationError(
                f"Expected the net to take inputs of sample_shape {self.sample_shape} but got: {first_line(error)}"
            ) from None

    def _cost(self, net: nn.Module) -> float:
        if self.by == "params":
            return sum(parameter.numel() for parameter in net.parameters())
        if self.by == "upload_bytes":
            sent = {**parameters_of(net), **buffers_of(net)}
            return wire.dense_size(sum(tensor.numel() for tensor in sent.values()))
        assert self.sample_shape is not None
        # Two samples: batch norm needs more than one value per channel, and deep nets reduce an image to one pixel.
        device = next((parameter.device for parameter in net.parameters()), None)
        dtype = torch.int64 if self.sample_type == "int64" else None
        return flops_per_sample(net, torch.zeros(2, *self.sample_shape, dtype=dtype, device=device))[1]

    def _reference_cost(self, reference: float | NetFactory) -> float:
        if not callable(reference):
            return float(reference)
        try:
            cost = self.cost(lambda: Size().make(reference))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(f"Expected a net or a number as reference but got: {first_line(error)}") from None
        if not cost:
            raise ConfigurationError(f"Expected a net of more than 0 {UNITS[self.by]} as reference but got one of none")
        return cost

    def _allowance(self, name: str, budget: float, limit: float, sizes: Sequence[Size], cost: CostOf) -> Allowance:
        largest = largest_within(sizes, limit, cost)
        if largest is None:
            least = next(size for size in sizes if cost(size) is not None)
            raise ConfigurationError(
                f"Expected a budget of at least {cost(least):,.0f} {UNITS[self.by]}, the smallest sub-model's "
                f"({least}), for level {name} but got {math.floor(limit):,}, which is {budget:g} of the reference"
            )
        return Allowance(budget, limit, cost(largest) or 0.0, largest)


def _check_budgets(budgets: Sequence[float]) -> None:
    if not 1 <= len(budgets) <= len(string.ascii_lowercase):
        raise ConfigurationError(f"Expected 1 to 26 budgets, one per level, but got {len(budgets)}")
    if not all(0 < budget < math.inf for budget in budgets):
        raise ConfigurationError(f"Expected positive budgets but got {list(budgets)}")
    if any(after >= before for before, after in itertools.pairwise(budgets)):
        raise ConfigurationError(f"Expected falling budgets, the largest level first, but got {list(budgets)}")
