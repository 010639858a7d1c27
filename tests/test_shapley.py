"""Shapley values against values by hand, brute force and their axioms; coalitions of sub-models against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor, nn

from hetfl import FederatedModule
from hetfl.aggregators import ValueMean
from hetfl.errors import ConfigurationError
from hetfl.federation.facts import facts_of
from hetfl.methods import FedAvg
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.selection import Uniform
from hetfl.submodel import parameters_of
from hetfl.trainer.utility import Utility
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from hetfl.value import Individual, LeaveOneOut, Shapley
from hetfl.value.base import finite
from hetfl.value.shapley import exact, marginals, truncated
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
HELD = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1]]
"""Entries of six clients with sub-models of three sizes; nobody holds entry 6."""
SAMPLES = [4, 3, 5, 2, 6, 1]


def game(seed: int, players: int) -> dict[frozenset[int], float]:
    random = np.random.default_rng(seed)
    coalitions = [frozenset(c) for size in range(players + 1) for c in combinations(range(players), size)]
    return dict(zip(coalitions, random.integers(-5, 6, len(coalitions)).astype(float).tolist(), strict=True))


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_exact_values_equal_the_mean_over_all_orders_and_add_up(seed: int, players: int) -> None:
    worth = game(seed, players)
    orders = list(permutations(range(players)))
    brute = np.mean([marginals(worth.__getitem__, list(order), 0.0, 0.0) for order in orders], axis=0)
    values = exact(worth.__getitem__, players)
    assert values == pytest.approx(brute)
    assert values.sum() == pytest.approx(worth[frozenset(range(players))] - worth[frozenset()])


def test_equal_players_have_equal_values_and_a_dummy_has_none() -> None:
    assert exact(lambda p: float(bool(p & {0, 1})), 3).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert exact(lambda p: float(0 in p and bool(p & {1, 2})), 3).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_monte_carlo_is_within_three_standard_errors_of_the_exact_values() -> None:
    value = measured(Shapley("exact"))
    true, orders = np.array(list(value.of_round().values())), list(permutations(range(6)))
    spread = np.std([marginals(value.worth, list(order), 0.0, 0.0) for order in orders[::7]], axis=0)
    for method, guided in (("monte_carlo", False), ("gtg", True)):
        random = torch.Generator().manual_seed(3)
        estimate = truncated(value.worth, 6, random, within=0.0, permutations=400, converged=0.0, guided=guided)
        assert np.all(np.abs(estimate - true) <= 3 * spread / np.sqrt(400) + 1e-9), method
        assert estimate.sum() == pytest.approx(true.sum())


@pytest.mark.parametrize("permutations", [1, 3])
def test_the_given_number_of_permutations_is_drawn(permutations: int) -> None:
    worth, random, again = game(4, 4), torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    orders = [torch.randperm(4, generator=again).tolist() for _ in range(permutations)]
    values = truncated(worth.__getitem__, 4, random, permutations=permutations)
    whole = worth[frozenset(range(4))]
    assert values == pytest.approx(
        sum(marginals(worth.__getitem__, order, whole, 0.0) for order in orders) / permutations
    )


@given(st.integers(0, 1000), st.floats(0.01, 4.0))
def test_truncation_changes_the_sum_by_less_than_its_bound(seed: int, within: float) -> None:
    worth, random = game(seed, 4), torch.Generator().manual_seed(seed)
    gained = worth[frozenset(range(4))] - worth[frozenset()]
    values = truncated(worth.__getitem__, 4, random, within=within, guided=True)
    assert abs(values.sum() - gained) < within + 1e-9
    assert not truncated(worth.__getitem__, 4, random, between=abs(gained)).any()


def utility(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return a score that depends on all entries, not linearly, and a loss."""
    w = tensors["w"].double()
    return float((w * torch.arange(1.0, 8.0).double()).sum().tanh() + w.prod()), float(w.square().sum())


def measured(value: Any) -> Any:
    """Return a measure that has observed a round of six clients; the model then moved on, as the server's step does."""
    model, random = torch.linspace(-0.2, 0.3, 7), torch.Generator().manual_seed(1)
    value.setup(Facts(sizes=SAMPLES, seed=5, parameters={"w": model}, utility=utility))
    value.begin_round(2, 0.1)
    for client, (entries, samples) in enumerate(zip(HELD, SAMPLES, strict=True)):
        update = DenseUpdate(0.3 * torch.randn(len(entries), generator=random))
        value.observe(update, Part({"w": (torch.tensor(entries),)}), Report(10 + client, "a", samples, 0.5))
    model += 1.0
    return value


@pytest.mark.parametrize("metric", ["score", "loss"])
def test_a_coalitions_model_is_the_mean_over_its_holders(metric: Any) -> None:
    value = measured(LeaveOneOut(metric))
    theta, random = np.linspace(-0.2, 0.3, 7), torch.Generator().manual_seed(1)
    updates = [0.3 * torch.randn(len(entries), generator=random).double().numpy() for entries in HELD]

    def worth(coalition: list[int]) -> float:
        model = theta.astype(np.float32).astype(float)
        for j in range(7):
            holders = [k for k in coalition if j in HELD[k]]
            if holders:
                parts = [SAMPLES[k] * updates[k][HELD[k].index(j)] for k in holders]
                model[j] += sum(parts) / sum(SAMPLES[k] for k in holders)
        score, loss = utility({"w": torch.from_numpy(model)})
        return score if metric == "score" else -loss

    everyone = list(range(6))
    by_hand = {10 + k: worth(everyone) - worth([i for i in everyone if i != k]) for k in everyone}
    assert value.of_round() == pytest.approx(by_hand, abs=1e-6)


def overflowing(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the score 1 and a loss in float32: NaN and infinity for a model with huge entries."""
    loss = float(tensors["w"].square().sum())
    return 1.0 + 0.0 * loss, loss


@pytest.mark.parametrize("metric", ["score", "loss"])
@pytest.mark.parametrize("kind", [Individual, LeaveOneOut, partial(Shapley, "exact")])
def test_an_update_that_overflows_has_a_finite_value(kind: Callable[..., Any], metric: Any) -> None:
    value, whole = measured(kind(metric=metric)), Part({"w": (torch.arange(7),)})
    value.utility = overflowing
    value.observe(DenseUpdate(torch.full((7,), 3e38)), whole, Report(16, "a", 1, 0.5))
    values = finite(value.of_round(), "the measure", 2)
    assert values.pop(16) == pytest.approx(-1e9)
    assert values.keys() == set(range(10, 16))
    assert max(abs(each) for each in values.values()) < 10


class WithFrozen(nn.Module):
    """A net with a frozen layer, which each draw gives other values, and a buffer that the outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.first.weight.requires_grad_(False)
        self.register_buffer("scale", torch.ones(16))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.first(inputs.flatten(1)) * self.scale
        return cast(Tensor, self.last(hidden.relu()))


def test_a_candidate_has_the_frozen_parameters_and_buffers_of_the_global_model(fit: Fit) -> None:
    module, data = small_module(FedAvg, net=WithFrozen, levels=small_levels(1.0)), small_data(server_fraction=0.2)
    fit(module, data, rounds=1, limit_val_batches=0)
    module.models.tensors[0]["scale"].copy_(torch.linspace(0.5, 2.0, 16))
    server = data.server_data
    assert server is not None
    inputs, targets = server.batch(torch.arange(len(server)))
    logits = module.net(inputs).detach()
    expected = (
        float((logits.argmax(1) == targets).double().mean()),
        float(nn.functional.cross_entropy(logits, targets)),
    )
    utility = facts_of(module, data, 1).utility
    assert utility is not None
    assert utility(parameters_of(module.net)) == pytest.approx(expected)


def test_the_servers_samples_are_in_no_batch_of_one(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = small_module(FedAvg, levels=small_levels(1.0)), small_data(server_fraction=0.2)
    fit(module, data, rounds=1, limit_val_batches=0)
    utility, server = facts_of(module, data, 1).utility, data.server_data
    assert isinstance(utility, Utility)
    assert server is not None
    monkeypatch.setattr("hetfl.trainer.utility.BATCH", len(server) - 1)
    sizes, predict = list[int](), utility.predict

    def counted(net: nn.Module, inputs: Any) -> Tensor:
        sizes.append(len(inputs))
        return predict(net, inputs)

    monkeypatch.setattr(utility, "predict", counted)
    utility(parameters_of(module.net))
    assert sizes == [len(server)]


def test_wrong_settings_and_missing_data_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="method to be exact, monte_carlo or gtg but got 'banzhaf'"):
        Shapley("banzhaf")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="metric to be score or loss but got 'f1'"):
        LeaveOneOut("f1")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"data.server_fraction above 0 for ValueMean\("):
        fit(small_module(aggregator=ValueMean(LeaveOneOut())), rounds=1)
    large = small_module(aggregator=ValueMean(Shapley("exact")), selection=Uniform(11))
    with pytest.raises(ConfigurationError, match="at most 10 clients for exact Shapley values but got 11"):
        fit(large, small_data(server_fraction=0.2), rounds=1)


@pytest.mark.parametrize("value", [LeaveOneOut, lambda: Shapley(permutations=8, between=0.0)])
def test_a_resumed_run_has_the_same_values(fit: Fit, tmp_path: Path, value: Callable[[], Any]) -> None:
    def module() -> FederatedModule:
        return small_module(aggregator=ValueMean(value()))

    whole, first, second = module(), module(), module()
    fit(whole, small_data(server_fraction=0.2), rounds=4, name="whole", limit_val_batches=0)
    begun = fit(first, small_data(server_fraction=0.2), rounds=2, name="begun", limit_val_batches=0)
    begun.save_checkpoint(tmp_path / "half.ckpt")
    path = str(tmp_path / "half.ckpt")
    fit(second, small_data(server_fraction=0.2), rounds=4, name="resumed", limit_val_batches=0, ckpt=path)
    values = [module.aggregator.first.values for module in (whole, second)]  # type: ignore[attr-defined]
    assert values[0] == values[1]
    assert len(set(values[0].values())) > 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
