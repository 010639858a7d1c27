"""A width-scaled linear net, a federation of four clients, and its local training in NumPy, for tests of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
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
