"""Sparsifiers that choose entries by the weight after training, against NumPy, alone and in whole runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hetfl import FedAvg, Level
from hetfl.aggregators import SampleMean
from hetfl.compression import ErrorFeedback, TopK
from hetfl.compression.base import Context
from hetfl.downlink import Downlink
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.layout import Layout
from hetfl.local import Executor, LocalTraining, Sequential, Stacked, Workers
from hetfl.parts import RandomMask, RankedMask
from hetfl.selection import Uniform
from tests.conftest import small_module
from tests.reference.cases import Fit, sgd
from tests.reference.given import made_data
from tests.sparse_cases import WEIGHTS, Array, Clients, LinearNet, Tensors, top, values_of

SIZES, LR, STEPS, DENSITY = [9, 14, 7, 11], 0.3, 2, 0.3


def test_the_entries_of_the_largest_weights_after_training_send_their_change() -> None:
    """Diff on Top-K-Weights; the largest changes would be those of entries 1 and 2."""
    start, after = torch.tensor([4.0, 1.0, 0.0, -3.0]), torch.tensor([4.1, 1.1, 3.2, -3.1])
    update = TopK(0.5, by="weight").compress_in(after - start, Context(0.1, start=lambda: start))
    assert update.to_dense().tolist() == pytest.approx([0.1, 0.0, 3.2, 0.0])


def test_a_layer_has_its_share_by_weight() -> None:
    random = np.random.default_rng(0)
    start, change = random.normal(size=60), random.normal(size=60)
    layout = Layout({"w": (4, 10), "b": (20,)})
    context = Context(0.1, layout, start=lambda: torch.from_numpy(start))
    update = TopK(0.2, scope="layer", by="weight").compress_in(torch.from_numpy(change), context)
    parts = [top(abs(start + change)[:40], 8), top(abs(start + change)[40:], 4)]
    np.testing.assert_array_equal(update.to_dense().numpy(), np.concatenate(parts) * change)


def test_first_values_are_needed_and_settings_are_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"began with for TopK\(by: weight\) but got none"):
        TopK(0.5, by="weight").compress(torch.ones(3), lr=0.1)
    with pytest.raises(ConfigurationError, match="by to be delta or weight but got 'size'"):
        TopK(0.5, by="size")  # type: ignore[arg-type]


def flat(values: Tensors, mask: Tensors) -> Array:
    """Return the held entries of the parameters, in their order."""
    return np.concatenate([value[mask.get(name, np.ones_like(value)) > 0] for name, value in values.items()])


@pytest.mark.usefixtures("double_precision")
def test_a_run_with_a_mask_and_residuals_equals_numpy(fit: Fit) -> None:
    rule = RankedMask(every=0)
    module = FedAvg(
        LinearNet,
        {"a": Level("a"), "b": Level("b", density=0.4)},
        assignment=Dynamic({"b": 1}),
        selection=Uniform(len(SIZES)),
        local=LocalTraining(epochs=STEPS, batch_size=100, optimizer=sgd(LR)),
        aggregator=SampleMean(),
        parts=rule,
        uplink=ErrorFeedback(TopK(DENSITY, by="weight")),
    )
    data = made_data(SIZES, (6,), 3)
    data.setup()
    theta, clients = values_of(module.net), Clients(data, LR, STEPS)
    mask: Tensors = {name: each.double().numpy() for name, each in rule.held(0.4).items()}
    residuals = [np.zeros_like(flat(theta, mask)) for _ in SIZES]
    fit(module, data, rounds=5, precision="64-true", limit_val_batches=0)
    for _ in range(5):
        step, start = np.zeros_like(residuals[0]), flat(theta, mask)
        for k, result in enumerate(clients.results(theta, [mask] * len(SIZES))):
            change = flat(result, mask) - start + residuals[k]
            sent = top(abs(start + change), int(DENSITY * change.size)) * change
            residuals[k] = change - sent
            step += clients.sizes[k] / sum(clients.sizes) * sent
        at = 0
        for name, value in theta.items():
            where = mask.get(name, np.ones_like(value)) > 0
            value[where] += step[at : at + int(where.sum())]
            at += int(where.sum())
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, theta[name], rtol=1e-9, atol=1e-12)
    assert all(residual.any() for residual in residuals)
    assert set(WEIGHTS) < theta.keys()


@pytest.mark.parametrize("executor", [Workers(2), Stacked(3)], ids=["workers", "stacked"])
def test_executors_agree_with_coded_downloads_and_masks_of_each_client(fit: Fit, executor: Executor) -> None:
    def trained(executor: Executor) -> list[torch.Tensor]:
        module = small_module(
            levels={"a": Level("a"), "b": Level("b", 0.5, density=0.3)},
            parts=RandomMask(),
            downlink=Downlink(),
            personal=["classifier.bias"],
            uplink=ErrorFeedback(TopK(0.2, by="weight")),
            executor=executor,
        )
        fit(module, rounds=3, precision="64-true", limit_val_batches=0, name=type(executor).__name__)
        return [parameter.detach() for parameter in module.parameters()]

    for one, two in zip(trained(Sequential()), trained(executor), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9)
