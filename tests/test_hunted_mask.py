"""FLASH: densities of layers that clients find by dynamic sparse training, against NumPy and by their invariants."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hetfl import FedAvg, Level
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.parts import DynamicMask, HuntedMask
from hetfl.parts.growth import RandomGrowth
from hetfl.parts.hunted_mask import LayerDensities
from hetfl.parts.mask_rule import MaskRule
from hetfl.pruning.criteria import Magnitude
from hetfl.pruning.densities import density_of, rescaled
from hetfl.pruning.redistribution import redistributed
from hetfl.question import ClientView
from hetfl.selection import Uniform
from hetfl.wire import encode_part
from tests.conftest import small_data, small_module
from tests.reference.cases import Fit
from tests.reference.given import made_data
from tests.sparse_cases import WEIGHTS, LinearNet, Tensors, client_arrays, gradient, masked, values_of

DENSITY = 0.3


def module_of(rule: MaskRule, **changes: Any) -> FedAvg:
    levels = {"a": Level("a"), "b": Level("b", density=DENSITY)}
    settings = {"levels": levels, "parts": rule, "assignment": Dynamic({"b": 1}), "selection": Uniform(4), **changes}
    module = small_module(FedAvg, **settings)
    assert isinstance(module, FedAvg)
    return module


@given(st.integers(0, 2**32), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_entries_move_to_random_places(seed: int, sizes: list[int], density: float, share: float) -> None:
    random = torch.Generator().manual_seed(seed)
    values = {str(i): torch.randn(size, generator=random) for i, size in enumerate(sizes)}
    masks = {name: torch.rand(len(each), generator=random) < density for name, each in values.items()}
    held, flat = torch.cat([*masks.values()]), torch.cat([*values.values()]).abs()
    total = int(held.count_nonzero())
    first = sum(int(mask.any()) for mask in masks.values())
    count = min(int(share * total), total - first, len(held) - total)
    best = [
        each.abs().masked_fill(~mask, -1).argmax() for each, mask in zip(values.values(), masks.values(), strict=True)
    ]
    safe = {
        sum(sizes[:i]) + int(at) for i, (at, mask) in enumerate(zip(best, masks.values(), strict=True)) if mask.any()
    }
    leaving = sorted((i for i in range(len(held)) if held[i] and i not in safe), key=lambda i: (float(flat[i]), -i))
    after = torch.cat([*redistributed(values, masks, share, random).values()])
    assert {i for i in range(len(held)) if held[i] and not after[i]} == set(leaving[:count])
    assert int(after.count_nonzero()) == total


def test_densities_are_scaled_to_that_of_the_level() -> None:
    """Densities (0.8, 0.2) and (0.4, 0.6) of 100 and 300 entries have the mean (0.6, 0.4): 40 and 80 entries at 0.3."""
    scaled = rescaled({"a": (0.8 + 0.4) / 2, "b": (0.2 + 0.6) / 2}, {"a": 100, "b": 300}, 0.3)
    assert [100 * scaled["a"], 300 * scaled["b"]] == pytest.approx([40, 80])
    assert rescaled({"a": 0.1, "b": 0.2}, {"a": 5, "b": 5}, 1.0) == {"a": 1.0, "b": 1.0}


@pytest.mark.usefixtures("double_precision")
def test_a_hunter_trains_as_in_numpy() -> None:
    data, net, epochs, share, lr = made_data([23], (6,), 3), LinearNet(), 3, 0.4, 0.2
    data.setup()
    inputs, labels = client_arrays(data, 0)
    masks = {n: torch.rand(dict(net.named_parameters())[n].shape) < 0.5 for n in WEIGHTS}
    masks[WEIGHTS[1]][0, 0] = masks[WEIGHTS[0]][0, 0] = True
    theta, mask = values_of(net), {name: each.double().numpy() for name, each in masks.items()}
    for name, each in net.named_parameters():
        each.data.masked_fill_(~masks.get(name, torch.ones_like(each, dtype=torch.bool)), 0.0)
    batches = [(torch.from_numpy(inputs), torch.from_numpy(labels))]
    view = ClientView(batches, 3, torch.Generator().manual_seed(5), net, held=masks)
    answer = LayerDensities(2, epochs, lr, 8, share).answer(view)

    random, theta = torch.Generator().manual_seed(5), masked(theta, mask)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels), generator=random).split(8):
            slope = gradient(theta, inputs[rows], labels[rows])
            theta = masked({name: value - lr * slope[name] for name, value in theta.items()}, mask)
        if epoch + 1 < epochs:
            mask = moved(theta, mask, share * (1 - epoch / epochs), random)
            theta = masked(theta, mask)
    assert answer.tolist() == pytest.approx([mask[name].mean() for name in WEIGHTS])
    assert answer.tolist() != pytest.approx([float(masks[name].double().mean()) for name in WEIGHTS])


def test_a_mask_of_all_entries_is_a_part_without_a_mask() -> None:
    net = LinearNet()
    batches = [(torch.rand(4, 6), torch.arange(4) % 3)]
    view = ClientView(batches, 3, torch.Generator().manual_seed(5), net)
    assert LayerDensities(2, 2, 0.1, 4, 0.5).answer(view).tolist() == [1.0, 1.0]


def moved(theta: Tensors, mask: Tensors, share: float, random: torch.Generator) -> Tensors:
    """Return masks without the smallest values, the largest of each weight apart, and with random new entries."""
    held = np.concatenate([mask[name].flatten() for name in WEIGHTS]) > 0
    flat = np.concatenate([abs(theta[name]).flatten() for name in WEIGHTS])
    ends = np.cumsum([mask[name].size for name in WEIGHTS])
    safe = {int(s + np.where(held[s:e], flat[s:e], -1).argmax()) for s, e in zip([0, *ends], ends, strict=False)}
    count = int(share * held.sum())
    leaving = sorted((i for i in np.flatnonzero(held) if i not in safe), key=lambda i: flat[i])[:count]
    chances = torch.rand(len(held), generator=random, dtype=torch.float64).numpy()
    coming = sorted(np.flatnonzero(~held), key=lambda i: -chances[i])[: len(leaving)]
    after = held.copy()
    after[leaving], after[coming] = False, True
    parts = np.split(after.astype(float), ends[:-1])
    return {name: part.reshape(mask[name].shape) for name, part in zip(WEIGHTS, parts, strict=True)}


def test_a_hunt_sends_densities_and_gives_one_random_mask(fit: Fit) -> None:
    """Half of the first cohort hunts; after it the mask stays, pruned entries are 0, and a seed gives the mask."""
    rule, data = HuntedMask(hunters=0.5, epochs=4, share=0.6), small_data()
    module = module_of(rule)
    before = rule.mask
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    found = rule.mask
    assert [int(m.count_nonzero()) for m in found.values()] != [int(m.count_nonzero()) for m in before.values()]
    assert density_of(found) == pytest.approx(DENSITY, abs=0.03)
    fit(module, data, rounds=2, name="more", limit_val_batches=0)
    assert all(torch.equal(rule.mask[name], mask) for name, mask in found.items())
    assert not any(weight[~found[name]].any() for name, weight in rule.weights.items())
    part = rule.of_level("b", 3)
    assert len(encode_part(part, module.levels.indices["b"], module.levels.whole)) < 100
    columns = trainer.callback_metrics
    probes = float(columns["comm/down_probes_bytes"])
    entries = part.size if part.size else 0
    # Two hunters download the sparse model, which they keep for the round.
    assert 1.9 * 4 * entries < probes < 2.2 * 4 * entries


def test_own_masks_become_a_common_one_of_the_largest_weights(fit: Fit) -> None:
    rule = HuntedMask(hunters=0.5, epochs=2, exchange=0.3, every=3)
    module = module_of(rule)
    fit(module, rounds=2, limit_val_batches=0)
    own = [masks for client in range(12) if (masks := rule.of_client(client, DENSITY)) is not None]
    totals = {sum(int(mask.count_nonzero()) for mask in masks.values()) for masks in own}
    assert totals == {sum(int(mask.count_nonzero()) for mask in rule.mask.values())}
    assert len({b"".join(mask.numpy().tobytes() for mask in masks.values()) for masks in own}) == len(own) > 3
    fit(module, rounds=1, name="common", limit_val_batches=0)
    assert all(rule.of_client(client, DENSITY) is None for client in range(12))
    for name, weight in rule.weights.items():
        mask = rule.mask[name]
        assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max()) == 0.0
    assert density_of(rule.mask) == pytest.approx(DENSITY, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hunters": 0.0}, "Expected hunters in (0, 1]"),
        ({"lr": float("inf")}, "lr above 0"),
        ({"exchange": 1.0}, "Expected share and exchange in (0, 1) but got 0.25, 1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        HuntedMask(**settings)


def test_samples_without_classes_are_refused() -> None:
    held = {name: torch.ones(each.shape, dtype=torch.bool) for name, each in LinearNet().named_parameters()}
    view = ClientView([(torch.zeros(4, 6), torch.zeros(4))], 3, torch.Generator(), LinearNet(), held=held)
    with pytest.raises(ConfigurationError, match="Expected scores of classes"):
        LayerDensities(2, 1, 0.1, 4, 0.3).answer(view)


def test_the_first_cohort_chooses_the_candidate_of_the_smallest_loss(fit: Fit) -> None:
    """Each client downloads every candidate; the losses are those of its batch under batch statistics, by hand."""
    rule, data = DynamicMask(RandomGrowth(), first=Magnitude(), every=9, candidates=4), small_data()
    module = module_of(rule, selection=Uniform(12))
    data.setup()
    first = {name: weight.clone() for name, weight in rule.weights.items()}
    losses, masks = [], [rule._candidate(number) for number in range(4)]
    net = module.levels.draw().train()
    for each in masks:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name in each:
                    parameter.copy_(first[name].masked_fill(~each[name], 0.0))
            of_clients = [data.client_data(client) for client in range(12)]
            outputs = [net(data.transform.eval(samples.inputs)) for samples in of_clients]
            pairs = zip(outputs, of_clients, strict=True)
            losses.append(sum(float(cross_entropy(out, samples.targets)) for out, samples in pairs) / 12)
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    chosen = masks[int(np.argmin(losses))]
    assert all(torch.equal(rule.mask[name], mask) for name, mask in chosen.items())
    assert len({b"".join(m.numpy().tobytes() for m in mask.values()) for mask in masks}) == 4
    sparse = rule.of_level("b", 0).size * 4
    assert 4 * 12 * sparse * 0.9 < float(trainer.callback_metrics["comm/down_probes_bytes"]) < 4 * 12 * sparse * 1.3
    assert not any(weight[~rule.mask[name]].any() for name, weight in rule.weights.items())
