"""Densities of layers, schedules and PruneFL's greedy choice against published values and brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetfl.errors import ConfigurationError
from hetfl.parts import RankedMask
from hetfl.pruning.densities import best, erdos_renyi_kernel, largest, layer_counts
from hetfl.pruning.greedy import fastest_descent
from hetfl.pruning.schedules import Cubic, DensitySchedule, exchanged

SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "head": (10, 512)}


def test_densities_of_erdos_renyi_kernel_are_those_by_hand() -> None:
    densities = erdos_renyi_kernel(SHAPES, 0.2)
    assert densities == pytest.approx({"conv1": 0.195662, "conv2": 0.039621, "head": 0.344707}, abs=1e-6)
    sizes = {"conv1": 432, "conv2": 4608, "head": 5120}
    assert sum(densities[name] * size for name, size in sizes.items()) == pytest.approx(0.2 * 10160)


def test_a_layer_whose_density_would_be_above_one_is_dense() -> None:
    densities = erdos_renyi_kernel({"small": (2, 2), "large": (100, 100)}, 0.3)
    assert densities["small"] == 1.0
    assert densities["large"] == pytest.approx((0.3 * 10004 - 4) / 10000)
    assert erdos_renyi_kernel({"small": (2, 2)}, 1.0) == {"small": 1.0}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_largest_scores_stay_and_of_equal_ones_the_first(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    mask = largest(torch.tensor(scores, dtype=torch.float32), count)
    by_hand = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert mask.nonzero().squeeze(1).tolist() == sorted(by_hand)


def test_entries_of_all_layers_compete_but_none_is_emptied() -> None:
    scores = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    masks = best(scores, "global", 0.5)
    assert masks["a"].tolist() == [False, False, False, True]
    assert masks["b"].tolist() == [False, True, True, True]
    assert {name: int(mask.sum()) for name, mask in best(scores, "layer", 0.5).items()} == {"a": 2, "b": 2}


def test_settings_that_empty_a_layer_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"got 0.001, which leaves none of the 432 entries of 'conv1'"):
        layer_counts("layer", SHAPES, 0.001)
    with pytest.raises(ConfigurationError, match=r"got 0.1, which leaves 1 entries for 2 layers"):
        best({"a": torch.ones(5), "b": torch.ones(5)}, "global", 0.1)
    with pytest.raises(ConfigurationError, match="scope to be layer, global or erk but got 'net'"):
        RankedMask(scope="net")  # type: ignore[arg-type]


def test_the_cubic_schedule_has_its_published_values() -> None:
    schedule = Cubic(every=10, until=200)
    sparsity = [1 - schedule.density(0.05, round, 200) for round in (0, 10, 50, 100, 150, 199, 200)]
    assert sparsity == pytest.approx([0.0, 0.1232, 0.5431, 0.8295, 0.9349, 0.9499, 0.95], abs=5e-5)
    assert Cubic(every=10).density(0.05, 150, 200) == schedule.density(0.05, 150, 200)
    assert DensitySchedule().density(0.3, 7, 9) == 0.3


@pytest.mark.parametrize("settings", [{"initial": 0.0}, {"until": 1}, {"every": 0}, {"begin": -1}])
def test_wrong_schedules_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="but got"):
        Cubic(**settings)  # type: ignore[arg-type]


def test_the_number_of_exchanged_entries_falls_with_a_cosine() -> None:
    assert [exchanged(1000, round, 0.2, 100) for round in (0, 10, 50, 90, 100, 150)] == [200, 195, 100, 4, 0, 0]
    assert exchanged(1000, 5000, 0.2, None) == 200


def test_prunefls_greedy_choice_is_the_best_of_all_sets() -> None:
    mask, gain = fastest_descent(torch.tensor([9.0, 4, 4, 1]), torch.tensor([1.0, 1, 2, 1]), seconds=2.0)
    assert mask.tolist() == [True, True, False, False]
    assert gain == pytest.approx(3.25)
    random = np.random.default_rng(0)
    for _ in range(200):
        scores, seconds = random.integers(0, 9, 10).astype(float), random.uniform(0.1, 2.0, 10)
        score, fixed = float(random.integers(0, 9)), float(random.uniform(0.1, 3.0))
        sets = (list(each) for count in range(11) for each in combinations(range(10), count))
        brute = max((score + scores[each].sum()) / (fixed + seconds[each].sum()) for each in sets)
        _, gain = fastest_descent(torch.from_numpy(scores), torch.from_numpy(seconds), score, fixed)
        assert gain == pytest.approx(brute)
