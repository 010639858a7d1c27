"""For tests of methods: small modules on Digits; a linear net, four clients, and their local training in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetfl import FedAvg, FederatedModule, Level
from hetfl.aggregators import SampleMean
from hetfl.local import PGD, LocalTraining
from hetfl.methods import Ditto, FjORD, ScaleFL, SplitMix, SplitMixRobust
from hetfl.models import MultiExitConvNet, SplitConvNet, StepResNet
from hetfl.selection import Uniform
from tests.conftest import small_levels, small_module, small_net
from tests.reference.cases import sgd
from tests.sparse_cases import CLASSES, FEATURES, Array, Tensors, trained

HIDDEN, LR, STEPS = 4, 0.3, 2
SIZES = [9, 14, 7, 11]


DEEP = {"a": Level("a", depth=2), "b": Level("b", 0.5, 2), "c": Level("c", 0.5, 1)}

METHODS: dict[str, Callable[..., Any]] = {
    "fjord": partial(small_module, FjORD),
    "nefl": partial(
        small_module,
        FedAvg,
        net=partial(StepResNet, hidden=(8, 16)),
        levels=DEEP,
        per_level=["*norm*", "*.step"],
    ),
    "scalefl": partial(small_module, ScaleFL, net=partial(MultiExitConvNet, hidden=(8, 16)), levels=DEEP),
    "split_mix": partial(
        small_module,
        SplitMix,
        net=partial(SplitConvNet, hidden=(32, 64), bases=4),
        levels=small_levels(1.0, 0.5, 0.25),
    ),
    "split_mix_robust": partial(
        small_module,
        SplitMixRobust,
        net=partial(SplitConvNet, hidden=(32, 64), bases=4, norm="dual"),
        levels=small_levels(1.0, 0.5, 0.25),
        attack=PGD(0.1, 1, 0.1),
    ),
    "ditto": partial(small_module, Ditto, net=partial(small_net, norm="batch"), levels=small_levels(1.0, 0.5)),
}
"""By name a small module of each method."""


class WideNet(nn.Module):
    """Two linear layers without a nonlinearity, whose hidden units are scaled."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        units = math.ceil(HIDDEN * width)
        self.first = nn.Linear(FEATURES, units, bias=False)
        self.second = nn.Linear(units, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(inputs.flatten(1)))
        return output


def federation(kind: type[FederatedModule], **changes: Any) -> Any:
    """Return a federation in which all four clients train on all of their data in each of two steps."""
    settings: dict[str, Any] = {
        "net": WideNet,
        "selection": Uniform(len(SIZES)),
        "local": LocalTraining(epochs=STEPS, batch_size=100, optimizer=sgd(LR)),
        "aggregator": SampleMean(),
    }
    return kind(**{**settings, **changes})


def block(theta: Mapping[str, Array], units: int) -> Tensors:
    """Return the leading units of a net's values."""
    first, second, bias = (theta[name] for name in ("first.weight", "second.weight", "second.bias"))
    return {"first.weight": first[:units], "second.weight": second[:, :units], "second.bias": bias}


def delta(theta: Tensors, arrays: tuple[Array, Any], lr: float = LR, steps: int = STEPS) -> Tensors:
    """Return what a client's training adds to its values."""
    after = trained(theta, {}, *arrays, lr=lr, steps=steps)
    return {name: after[name] - theta[name] for name in theta}


def spread(values: Array, shape: tuple[int, ...]) -> Array:
    """Return values as the leading block of zeros of a shape."""
    whole = np.zeros(shape)
    whole[tuple(slice(0, size) for size in values.shape)] = values
    return whole


class LinearBlock(nn.Module):
    """h + s W h."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.linear, self.step = nn.Linear(units, units, bias=False), nn.Parameter(torch.ones(()))

    def forward(self, h: Tensor) -> Tensor:
        result: Tensor = h + self.step * self.linear(h)
        return result


class StepNet(nn.Module):
    """Two linear layers, and residual blocks with step sizes between them."""

    def __init__(self, width: float = 1.0, depth: int = 2) -> None:
        super().__init__()
        units = int(4 * width)
        self.first = nn.Linear(FEATURES, units, bias=False)
        self.blocks = nn.Sequential(*(LinearBlock(units) for _ in range(depth)))
        self.second = nn.Linear(units, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.second(self.blocks(self.first(inputs.flatten(1))))
        return output


def step_gradient(theta: Tensors, inputs: Array, labels: Any, depth: int) -> Tensors:
    """Return the gradient of a StepNet's mean cross-entropy, by hand."""
    states = [inputs @ theta["first.weight"].T]
    for j in range(depth):
        states.append(states[-1] + theta[f"blocks.{j}.step"] * states[-1] @ theta[f"blocks.{j}.linear.weight"].T)
    logits = states[-1] @ theta["second.weight"].T + theta["second.bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    error = (odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) / len(labels)
    slopes = {"second.weight": error.T @ states[-1], "second.bias": error.sum(0)}
    back = error @ theta["second.weight"]
    for j in reversed(range(depth)):
        step, weight, before = theta[f"blocks.{j}.step"], theta[f"blocks.{j}.linear.weight"], states[j]
        slopes[f"blocks.{j}.step"] = np.array((back * (before @ weight.T)).sum())
        slopes[f"blocks.{j}.linear.weight"] = step * back.T @ before
        back = back + step * back @ weight
    return {**slopes, "first.weight": back.T @ inputs}
