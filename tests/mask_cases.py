"""Runs with masks that are compared with NumPy: the federation, the comparison, and masks of the best scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetfl import FedAvg, Level
from hetfl.aggregators import SampleMean
from hetfl.data import FederatedDataModule
from hetfl.fleet import Dynamic
from hetfl.local import LocalTraining
from hetfl.parts.mask_rule import MaskRule
from hetfl.selection import Uniform
from tests.reference.cases import Fit, sgd
from tests.reference.given import made_data
from tests.sparse_cases import WEIGHTS, Clients, LinearNet, Tensors, top, values_of

SIZES = [9, 14, 7, 11]
LR, STEPS, DENSITY = 0.3, 2, 0.4


def module_of(rule: MaskRule, density: float = DENSITY, lr: float = LR) -> FedAvg:
    """Return a federation in which all four clients train at a sparse level, on all of their data in each step."""
    return FedAvg(
        LinearNet,
        {"a": Level("a"), "b": Level("b", density=density)},
        assignment=Dynamic({"b": 1}),
        selection=Uniform(len(SIZES)),
        local=LocalTraining(epochs=STEPS, batch_size=100, optimizer=sgd(lr)),
        aggregator=SampleMean(),
        parts=rule,
    )


def check(
    fit: Fit,
    rule: MaskRule,
    rounds: int,
    play: Callable[[Tensors, Tensors, Clients], tuple[Tensors, Tensors]],
    lr: float = LR,
    data: FederatedDataModule | None = None,
) -> Any:
    """Compare a run with NumPy; ``play`` gets the initial values, the first mask and the clients."""
    module, data = module_of(rule, lr=lr), data or made_data(SIZES, (6,), 3)
    theta = values_of(module.net)
    first = {name: mask.double().numpy() for name, mask in rule.held(DENSITY).items()}
    trainer = fit(module, data, rounds=rounds, precision="64-true")
    theta, mask = play(theta, first, Clients(data, lr, STEPS))
    held = rule.held(DENSITY)
    for name in WEIGHTS:
        np.testing.assert_array_equal(held[name].numpy(), mask[name] > 0)
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, theta[name], rtol=1e-9, atol=1e-12)
    return trainer, first, mask


def per_layer(scores: Tensors, density: float = DENSITY) -> Tensors:
    return {name: top(scores[name], round(density * scores[name].size)) for name in WEIGHTS}


def all_together(scores: Tensors, density: float) -> Tensors:
    """Return the mask of the best scores of all weights; the best entry of each stays."""
    flat = np.concatenate([scores[name].flatten() for name in WEIGHTS])
    first = np.concatenate([top(scores[name], 1).flatten() for name in WEIGHTS])
    mask = top(np.where(first > 0, np.inf, flat), round(density * flat.size))
    split = np.split(mask, [scores[WEIGHTS[0]].size])
    return {name: each.reshape(scores[name].shape) for name, each in zip(WEIGHTS, split, strict=True)}


def sizes(theta: Tensors) -> Tensors:
    return {name: abs(theta[name]) for name in WEIGHTS}
