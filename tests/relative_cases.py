"""A width-scaled linear net, a federation of four clients, and its local training in NumPy, for tests of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetfl import FederatedModule
from hetfl.aggregators import SampleMean
from hetfl.local import LocalTraining
from hetfl.selection import Uniform
from tests.reference.cases import sgd
from tests.sparse_cases import CLASSES, FEATURES, Array, Tensors, trained

HIDDEN, LR, STEPS = 4, 0.3, 2
SIZES = [9, 14, 7, 11]


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
