"""FjORD: a run against NumPy, one width against FedAvg, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from lightning import Trainer

from hetfl import FedAvg
from hetfl.aggregators import SampleMean
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.local import Stacked
from hetfl.methods import FjORD
from hetfl.objectives import Regression
from hetfl.seeding import generator
from tests.conftest import small_levels, small_module, small_net
from tests.reference.given import made_data
from tests.relative_cases import LR, SIZES, STEPS, block, federation, spread
from tests.sparse_cases import CLASSES, Array, Tensors, client_arrays, values_of

Fit = Callable[..., Trainer]
UNITS = {"a": 4, "b": 2, "c": 1}


def softmax(logits: Array) -> Array:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def slopes(theta: Tensors, inputs: Array, targets: Array) -> tuple[Tensors, Array]:
    """Return the gradient of the cross-entropy with target distributions, and the logits."""
    hidden = inputs @ theta["first.weight"].T
    logits = hidden @ theta["second.weight"].T + theta["second.bias"]
    error = (softmax(logits) - targets) / len(targets)
    first = (error @ theta["second.weight"]).T @ inputs
    return {"first.weight": first, "second.weight": error.T @ hidden, "second.bias": error.sum(0)}, logits


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("distillation", [False, True])
def test_a_run_equals_numpy(fit: Fit, distillation: bool) -> None:
    rounds, levels = 4, small_levels(1.0, 0.5, 0.25)
    module = federation(FjORD, levels=levels, assignment=Dynamic(), distillation=distillation)
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    fit(module, data, rounds=rounds, precision="64-true")
    drawn_widths = set()
    for round in range(rounds):
        sums, held = ({name: np.zeros_like(value) for name, value in present.items()} for _ in range(2))
        for client, level in enumerate(module.assignment.levels(round)):
            inputs, labels = client_arrays(data, client)
            random, targets = generator(0, "method", round, client), np.eye(CLASSES)[labels]
            begun = block(present, UNITS[level])
            theta, affordable = dict(begun), "abc"["abc".index(level) :]
            for _ in range(STEPS):
                drawn = affordable[int(torch.randint(len(affordable), (), generator=random))]
                drawn_widths.add((level, drawn))
                total = {name: np.zeros_like(value) for name, value in theta.items()}
                if distillation or drawn == level:
                    total, logits = slopes(theta, inputs, targets)
                    targets_of_drawn = softmax(logits)
                else:
                    targets_of_drawn = targets
                if drawn != level:
                    inner, _ = slopes(block(theta, UNITS[drawn]), inputs, targets_of_drawn)
                    total = {name: total[name] + spread(inner[name], total[name].shape) for name in total}
                theta = {name: theta[name] - LR * total[name] for name in theta}
            for name, value in theta.items():
                sums[name] += len(labels) * spread(value - begun[name], present[name].shape)
                held[name] += len(labels) * spread(np.ones_like(value), present[name].shape)
        present = {name: value + sums[name] / np.maximum(held[name], 1) for name, value in present.items()}
    assert len(drawn_widths) >= 5
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)


def test_one_width_is_fedavg_to_the_bit(fit: Fit) -> None:
    levels, nets = small_levels(1.0), {}
    for kind in (FjORD, FedAvg):
        module = small_module(kind, levels=levels, aggregator=SampleMean())
        fit(module, rounds=3, name=kind.__name__)
        nets[kind] = module.net
    for p, q in zip(nets[FjORD].parameters(), nets[FedAvg].parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_it_refuses(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"without running statistics for FjORD.* but got 'blocks\.0\.norm\."):
        small_module(FjORD, net=partial(small_net, norm="batch"))
    with pytest.raises(ConfigurationError, match="no per_level tensors for FjORD"):
        small_module(FjORD, per_level=["*norm*"])
    with pytest.raises(ConfigurationError, match=r"for executor Stacked but got FjORD\.local_loss"):
        fit(small_module(FjORD, executor=Stacked(2)), rounds=1)
    with pytest.raises(ConfigurationError, match="Expected distillation false for Regression.* but got true"):
        small_module(FjORD).check_objective(Regression())


def test_a_batch_is_charged_in_the_mean_over_the_widths_that_may_be_drawn(fit: Fit) -> None:
    """A drawn smaller width is a second pass with distillation, and the only pass without."""
    costs = {"a": (1.0, 12.0), "b": (1.0, 6.0), "c": (1.0, 3.0)}
    for distillation, wanted in ((True, (15.0, 7.5, 3.0)), (False, (7.0, 4.5, 3.0))):
        module = small_module(FjORD, levels=small_levels(1.0, 0.5, 0.25), distillation=distillation)
        assert [module.training_flops(level, costs) for level in "abc"] == pytest.approx(wanted)
    module = small_module(FjORD, levels=small_levels(1.0, 0.5, 0.25), assignment=Dynamic({"c": 1}))
    other = small_module(FedAvg, levels=small_levels(1.0, 0.5, 0.25), assignment=Dynamic({"c": 1}))
    totals = []
    for each in (module, other):
        trainer = fit(each, rounds=1, name=type(each).__name__, limit_val_batches=0)
        totals.append(float(trainer.callback_metrics["compute/flops_total"]))
    assert totals[0] == totals[1]  # at the smallest level nothing else can be drawn
    assert module.levels.flops["a"][1] > other.levels.flops["a"][1]
