"""ScaleFL: its loss and a run against NumPy, sizes of its levels, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from hetfl import Level
from hetfl.aggregators import HolderMean
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.methods import ScaleFL
from hetfl.methods.scalefl import exit_distillation
from hetfl.models import MultiExitConvNet
from hetfl.objectives import Regression
from hetfl.types import CohortContext
from tests.conftest import small_module
from tests.reference.given import made_data
from tests.relative_cases import LR, SIZES, STEPS, federation, spread
from tests.sparse_cases import CLASSES, FEATURES, Array, Tensors, client_arrays, values_of

Fit = Callable[..., Trainer]
LEVELS = {"a": Level("a", depth=2), "b": Level("b", 0.5, 1)}
UNITS, DEPTHS = {"a": 4, "b": 2}, {"a": 2, "b": 1}
TEMPERATURE, WEIGHT = 2.0, 0.7


class ExitNet(nn.Module):
    """Linear stages, each with a linear exit."""

    def __init__(self, width: float = 1.0, depth: int = 2) -> None:
        super().__init__()
        units, self.exits = int(4 * width), depth
        self.trunk = nn.ModuleList(nn.Linear(units if i else FEATURES, units, bias=False) for i in range(depth))
        self.heads = nn.ModuleList(nn.Linear(units, CLASSES) for _ in range(depth))

    def forward(self, inputs: Tensor) -> Tensor:
        h, logits = inputs.flatten(1), []
        for layer, head in zip(self.trunk, self.heads, strict=True):
            h = layer(h)
            logits.append(head(h))
        return torch.stack(logits)


def softmax(logits: Array) -> Array:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def gradient(theta: Tensors, inputs: Array, labels: Any, depth: int, distils: bool) -> Tensors:
    """Return the gradient of ScaleFL's loss, by hand."""
    states = [inputs]
    for j in range(depth):
        states.append(states[-1] @ theta[f"trunk.{j}.weight"].T)
    logits = [states[j + 1] @ theta[f"heads.{j}.weight"].T + theta[f"heads.{j}.bias"] for j in range(depth)]
    slopes, back = {}, np.zeros_like(states[-1])
    for j in reversed(range(depth)):
        error = softmax(logits[j]) - np.eye(CLASSES)[labels]
        if distils:
            # The derivative of T² KL by the logits is T (softmax(z / T) - softmax(teacher / T)).
            errors = softmax(logits[j] / TEMPERATURE) - softmax(logits[-1] / TEMPERATURE)
            error = error + WEIGHT * TEMPERATURE * errors
        error = error * (j + 1) / (depth * (depth + 1) / 2) / len(labels)
        slopes[f"heads.{j}.weight"], slopes[f"heads.{j}.bias"] = error.T @ states[j + 1], error.sum(0)
        back = back + error @ theta[f"heads.{j}.weight"]
        slopes[f"trunk.{j}.weight"] = back.T @ states[j]
        back = back @ theta[f"trunk.{j}.weight"]
    return slopes


def cut(value: Array, name: str, units: int) -> Array:
    if name.endswith("bias"):
        return value
    rows, columns = name.startswith("trunk"), name != "trunk.0.weight"
    return value[: units if rows else None, : units if columns else None]


@pytest.mark.usefixtures("double_precision")
def test_a_run_equals_numpy(fit: Fit) -> None:
    """Distillation begins in round 2."""
    rounds = 5
    module = federation(
        ScaleFL,
        net=ExitNet,
        levels=LEVELS,
        assignment=Dynamic(),
        aggregator=HolderMean(),
        distillation=WEIGHT,
        temperature=TEMPERATURE,
        first_round=2,
    )
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    fit(module, data, rounds=rounds, precision="64-true")
    for round in range(rounds):
        sums, held = ({name: np.zeros_like(value) for name, value in present.items()} for _ in range(2))
        for client, level in enumerate(module.assignment.levels(round)):
            names = [name for name in present if DEPTHS[level] == 2 or ".1." not in name]
            begun = {name: cut(present[name], name, UNITS[level]) for name in names}
            theta = dict(begun)
            for _ in range(STEPS):
                slopes = gradient(theta, *client_arrays(data, client), DEPTHS[level], round >= 2)
                theta = {name: theta[name] - LR * slopes[name] for name in names}
            for name in names:
                sums[name] += spread(theta[name] - begun[name], present[name].shape)
                held[name] += spread(np.ones_like(begun[name]), present[name].shape)
        present = {name: value + sums[name] / np.maximum(held[name], 1) for name, value in present.items()}
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)


def test_the_divergence_of_exits_equals_a_double_loop() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    divergences = exit_distillation(logits, 3.0)
    values = logits.detach().numpy() / 3.0
    teacher = softmax(values[2])
    for j in range(3):
        expected = 0.0
        for n in range(5):
            p, q = teacher[n], softmax(values[j])[n]
            expected += 9.0 * sum(p[c] * np.log(p[c] / q[c]) for c in range(4)) / 5
        assert divergences[j].item() == pytest.approx(expected, abs=1e-12)
    divergences.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[2].any()
    assert logits.grad[:2].abs().min() > 0


def test_several_clients_have_one_loss_each_and_the_deepest_exit_predicts() -> None:
    module: Any = small_module(ScaleFL, net=ExitNet, levels=LEVELS)
    outputs, targets = torch.randn(2, 2, 6, CLASSES), torch.randint(CLASSES, (2, 6))
    ctx = CohortContext(0, torch.ones(2, CLASSES, dtype=torch.bool))
    each = [module.loss(outputs[k], targets[k], CohortContext(0, ctx.labels[k])) for k in range(2)]
    assert torch.allclose(module.loss(outputs, targets, ctx), torch.stack(each))
    net, inputs = ExitNet(), torch.randn(4, FEATURES)
    prediction, heads = module.predict_heads(net, inputs)
    assert torch.equal(prediction, net(inputs)[1])
    assert torch.equal(module.predict(net, inputs), prediction)
    assert list(heads) == ["head_1", "head_2"]


def test_sizes_of_the_default_levels_by_hand() -> None:
    """The trunk's 3x3 convolutions, the separable exits, and classifiers of the last block's channels."""
    hidden = [16, 32, 64, 128]
    module: Any = small_module(ScaleFL, net=partial(MultiExitConvNet, hidden=hidden), levels=None)
    for name, (width, depth) in {"a": (1.0, 4), "b": (0.75, 3), "c": (0.7, 2), "d": (0.7, 1)}.items():
        sizes = [-int(-round(width * size, 6) // 1) for size in hidden]
        trunk = sum(9 * a * b + 3 * b for a, b in zip([1, *sizes], sizes[:depth], strict=False))
        exits = sum(9 * size + size * sizes[3] + 2 * sizes[3] for size in sizes[: min(depth, 3)])
        assert module.levels.parameters[name] == trunk + exits + depth * 10 * (sizes[3] + 1)


def test_what_is_refused() -> None:
    for wrong in ({"distillation": -1.0}, {"temperature": 0.0}, {"first_round": -1}):
        with pytest.raises(ConfigurationError, match="at least 0 and temperature above 0 for ScaleFL but got"):
            small_module(ScaleFL, net=ExitNet, levels=LEVELS, **wrong)
    module: Any = small_module(ScaleFL, net=ExitNet, levels=LEVELS)
    with pytest.raises(ConfigurationError, match=r"Expected distillation 0 for Regression.* but got 0\.05"):
        module.check_objective(Regression())
