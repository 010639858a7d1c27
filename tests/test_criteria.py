"""Criteria of pruning against values by hand."""

from __future__ import annotations

import pytest
import torch

from hetfl.errors import ConfigurationError
from hetfl.pruning import criteria
from hetfl.pruning.criteria import Criterion, Evidence

WEIGHTS = torch.tensor([0.9, -0.1, 0.5, -2.0, 0.05, 0.3])
START = torch.tensor([0.9, 0.4, 0.1, -1.9, -0.6, 0.3])
GRADIENTS = torch.tensor([[0.2, 2.0, 0.2, 0.01, 1.0, 0.5], [0.0, 4.0, 0.2, 0.01, 1.0, 0.5]])  # of two equal clients


def evidence() -> Evidence:
    return Evidence(
        {"w": WEIGHTS},
        {"w": START},
        {"w": WEIGHTS - torch.arange(6)},
        {"w": GRADIENTS.mean(0)},
        {"w": GRADIENTS.square().mean(0)},
        {"w": 2.0},
    )


@pytest.mark.parametrize(
    ("criterion", "scores", "pruned"),
    [
        (criteria.Magnitude(), [0.9, 0.1, 0.5, 2.0, 0.05, 0.3], {1, 4}),
        (criteria.Movement(), [0.0, 0.5, 0.4, 0.1, 0.65, 0.0], {0, 5}),
        (criteria.Movement("round"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], {0, 1}),
        (criteria.Gradient(), [0.1, 3.0, 0.2, 0.01, 1.0, 0.5], {0, 3}),
        (criteria.Taylor(), [0.09, 0.3, 0.1, 0.02, 0.05, 0.15], {3, 4}),
        (criteria.SquaredTaylor("square_of_mean"), [0.0081, 0.09, 0.01, 0.0004, 0.0025, 0.0225], {3, 4}),
        (criteria.SquaredTaylor(), [0.0162, 0.1, 0.01, 0.0004, 0.0025, 0.0225], {3, 4}),
        (criteria.SquaredGradient("square_of_mean"), [0.01, 9.0, 0.04, 0.0001, 1.0, 0.25], {0, 3}),
        (criteria.SquaredGradient(), [0.02, 10.0, 0.04, 0.0001, 1.0, 0.25], {0, 3}),
        (criteria.GradientPerTime(), [0.01, 5.0, 0.02, 0.00005, 0.5, 0.125], {0, 3}),
    ],
    ids=lambda value: value.describe() if isinstance(value, Criterion) else None,
)
def test_scores_are_those_by_hand(criterion: Criterion, scores: list[float], pruned: set[int]) -> None:
    computed = criterion.scores(evidence())["w"]
    assert torch.allclose(computed, torch.tensor(scores), atol=1e-6)
    assert set(computed.argsort(stable=True)[:2].tolist()) == pruned


def test_scales_of_norm_layers_alone_have_a_norm_score() -> None:
    weights = {"norm.weight": torch.tensor([-2.0, 1.0]), "norm.bias": torch.ones(2), "conv.weight": torch.ones(2, 1)}
    scores = criteria.NormScale().scores(Evidence(weights))
    assert {name: each.tolist() for name, each in scores.items()} == {"norm.weight": [2.0, 1.0]}


def test_random_scores_depend_on_the_seed_and_on_the_tensor() -> None:
    weights = {"a": torch.zeros(1000), "b": torch.zeros(1000)}
    first, again, other = (criteria.RandomScore().scores(Evidence(weights, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], other["a"])
    assert 0.45 < first["a"].mean() < 0.55


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="since to be start or round but got 'epoch'"):
        criteria.Movement("epoch")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="combine to be mean_of_squares or square_of_mean but got 'sum'"):
        criteria.SquaredGradient("sum")  # type: ignore[arg-type]
