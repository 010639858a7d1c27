"""Hard thresholds: what reaches them, how they follow the learning rate, how they are calibrated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.compression import ErrorFeedback, GammaFedHT, HardThreshold
from hetfl.compression.hard_threshold import weighted_median
from hetfl.compression.threshold_pass import SHORTEST
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate, Update
from hetfl.wire import Expected, decode, encode


def normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def sparse(update: Update) -> SparseUpdate:
    assert isinstance(update, SparseUpdate)
    return update


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5]) | st.floats(-2, 2, width=32), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.25, 0.5, 3.0]),
)
def test_hard_threshold_keeps_what_reaches_it(numbers: list[float], threshold: float) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    want = [i for i, x in enumerate(vector.tolist()) if abs(x) >= threshold and x != 0]
    for compressor in (HardThreshold(threshold), GammaFedHT(threshold, alpha=0.0), GammaFedHT(threshold)):
        assert sparse(compressor.compress(vector, lr=0.1)).indices.tolist() == want


def test_all_below_the_threshold_sends_no_value_and_decodes() -> None:
    update = HardThreshold(threshold=1.0).compress(torch.full((1000,), 0.99), lr=0.1)
    payload = encode(update, round=0, client=1)
    assert len(payload) == 57  # the header, and the parameter of an empty Rice stream
    assert torch.equal(decode(payload, Expected(0, 1, 1000)).to_dense(), torch.zeros(1000))


@pytest.mark.parametrize("kind", [HardThreshold, GammaFedHT])
@pytest.mark.parametrize(
    ("threshold", "density"), [(None, None), (0.1, 0.1), (-0.1, None), (float("nan"), None), (float("inf"), None)]
)
def test_settings_of_the_threshold(kind: type[HardThreshold], threshold: float | None, density: float | None) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected .*threshold.* but got"):
        kind(threshold=threshold, density=density)


@pytest.mark.parametrize("alpha", [-0.5, float("nan"), float("inf")])
def test_settings_of_alpha(alpha: float) -> None:
    with pytest.raises(ConfigurationError, match="alpha"):
        GammaFedHT(threshold=0.1, alpha=alpha)


@pytest.mark.parametrize("reference_lr", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_of_reference_lr(reference_lr: float) -> None:
    with pytest.raises(ConfigurationError, match="reference_lr"):
        GammaFedHT(threshold=0.1, reference_lr=reference_lr)


def test_first_learning_rate_of_zero_is_no_reference() -> None:
    with pytest.raises(ConfigurationError, match=r"reference_lr.* but got 0.0"):
        GammaFedHT(threshold=0.1).compress(torch.ones(3), lr=0.0)
    assert GammaFedHT(threshold=0.1, alpha=0.0).compress(torch.ones(3), lr=0.0).num_sent == 3
    assert GammaFedHT(threshold=0.1, reference_lr=0.1).compress(torch.ones(3), lr=0.0).num_sent == 3


# How the threshold follows the learning rate.


@given(
    st.lists(st.floats(1e-6, 10), min_size=2, max_size=20, unique=True),
    st.floats(0, 3),
    st.floats(1e-4, 1) | st.none(),
)
def test_falling_learning_rate_never_raises_the_threshold(
    rates: list[float], alpha: float, reference_lr: float | None
) -> None:
    compressor = GammaFedHT(threshold=0.3, alpha=alpha, reference_lr=reference_lr)
    rates = sorted(rates, reverse=True)
    compressor.compress(torch.ones(1), lr=rates[0])
    thresholds = [compressor.threshold(lr) for lr in rates]
    assert all(got is not None for got in thresholds)
    assert thresholds == sorted(thresholds, reverse=True)  # type: ignore[type-var]
    for lr, got in zip(rates, thresholds, strict=True):
        assert got == pytest.approx(0.3 * math.exp(alpha * (math.log(lr) - math.log(reference_lr or rates[0]))))


def test_constant_learning_rate_is_the_plain_hard_threshold() -> None:
    plain = HardThreshold(threshold=0.8)
    for alpha in (0.0, 0.5, 1.0):
        compressor = GammaFedHT(threshold=0.8, alpha=alpha)
        for seed in range(5):
            got, want = (c.compress(normal(300, seed), lr=0.05) for c in (compressor, plain))
            assert torch.equal(sparse(got).indices, sparse(want).indices)


def test_the_reference_is_the_first_learning_rate() -> None:
    compressor = GammaFedHT(threshold=0.8, alpha=2.0)
    assert compressor.threshold(0.3) == 0.8
    compressor.compress(torch.ones(1), lr=0.2)
    compressor.compress(torch.ones(1), lr=0.1)
    assert compressor.threshold(0.1) == pytest.approx(0.2)


@pytest.mark.parametrize("size", [300, SHORTEST])
def test_the_threshold_falls_with_the_learning_rate_behind_the_door_too(size: int) -> None:
    feedback = ErrorFeedback(GammaFedHT(threshold=2.0, alpha=2.0))
    for round, lr in enumerate((0.4, 0.2, 0.1)):
        delta_D = normal(size, round)
        message = feedback.prepare(round, delta_D, index={"w": (slice(0, size),)}, round=round, lr=lr)
        sent = decode(message.payload, Expected(round, round, size))
        assert sent.num_sent == int((delta_D.abs() >= 2.0 * (lr / 0.4) ** 2).sum())
    with pytest.raises(ConfigurationError, match=r"reference_lr.* but got 0\.0"):
        ErrorFeedback(GammaFedHT(threshold=0.1)).prepare(
            0, normal(size, 0), index={"w": (slice(0, size),)}, round=0, lr=0.0
        )


def test_density_under_a_falling_learning_rate() -> None:
    """Deltas and learning rate both times 0.1: α = 1 keeps the density, α = 0 loses nearly all of it."""
    vector = normal(20_000, 3)
    densities = {}
    for alpha in (0.0, 1.0):
        compressor = GammaFedHT(threshold=2.0, alpha=alpha)
        before = compressor.compress(vector, lr=0.1).num_sent
        after = compressor.compress(0.1 * vector, lr=0.01).num_sent
        densities[alpha] = after / before
    assert densities[1.0] == pytest.approx(1, abs=0.01)
    assert densities[0.0] < 0.01


# Calibration.


def slow_weighted_median(values: list[float], weights: list[int]) -> float:
    """The smallest value once each is repeated as often as its weight says and the lower middle is taken."""
    repeated = sorted(value for value, weight in zip(values, weights, strict=True) for _ in range(weight))
    return repeated[(len(repeated) - 1) // 2]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 30)), min_size=1, max_size=12))
def test_weighted_median(pairs: list[tuple[float, int]]) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    got = weighted_median(values, weights)
    assert got == slow_weighted_median(values, weights)
    cost = {m: sum(w * abs(v - m) for v, w in pairs) for m in values}
    assert cost[got] == pytest.approx(min(cost.values()))
    assert weighted_median(values[::-1], weights[::-1]) == got


@pytest.mark.parametrize("kind", [HardThreshold, GammaFedHT])
def test_calibration_is_the_median_of_the_kth_magnitudes(kind: type[HardThreshold]) -> None:
    compressor = kind(density=0.1)
    vectors = [normal(size, size) * scale for size, scale in [(40, 1.0), (100, 3.0), (70, 2.0), (35, 9.0)]]
    kth = []
    for vector in vectors:
        assert compressor.threshold(0.1) is None
        update = compressor.compress(vector, lr=0.1)
        assert update.num_sent == max(1, vector.numel() // 10)
        kth.append(float(np.sort(np.abs(vector.numpy()))[-update.num_sent]))
        compressor.observe(update)
    compressor.end_round()
    want = slow_weighted_median(kth, [vector.numel() for vector in vectors])
    assert compressor.threshold(0.1) == want
    # From now on it is a threshold, and it stays.
    update = sparse(compressor.compress(vectors[1], lr=0.1))
    assert update.indices.tolist() == [i for i, x in enumerate(vectors[1].tolist()) if abs(x) >= want]
    compressor.observe(update)
    compressor.end_round()
    assert compressor.threshold(0.1) == want


def test_calibration_goes_on_until_an_update_is_accepted() -> None:
    compressor = GammaFedHT(density=0.1)
    for round, lr in enumerate([0.4, 0.2]):
        for client in range(3):
            update = compressor.compress(normal(100, client), lr=lr)
            assert update.num_sent == 10
            if round == 1:
                compressor.observe(update)
        compressor.end_round()
        assert (compressor.threshold(lr) is None) == (round == 0)
    initial = float(np.median([np.sort(np.abs(normal(100, client).numpy()))[-10] for client in range(3)]))
    assert compressor.threshold(0.2) == initial  # γ_0 is that of the calibration
    assert compressor.threshold(0.1) == pytest.approx(initial / 2)


def test_a_tensor_that_is_sent_later_has_the_learning_rate_of_its_calibration_for_reference() -> None:
    """Deltas shrink with the learning rate: at α = 1 every tensor keeps its density, whenever it came."""
    compressor = GammaFedHT(density=0.1, scope="layer")
    shallow, deep = Layout({"first": (1000,)}), Layout({"first": (1000,), "last": (1000,)})
    for round in range(8):
        lr, layout = 0.1 * 0.5**round, shallow if round < 4 else deep
        update = compressor.compress(lr * normal(layout.size, round), lr=lr, layout=layout)
        assert all(70 <= sent <= 130 for sent in update.num_sent_per_tensor(layout).tolist()), round
        compressor.observe(update, layout)
        compressor.end_round()
        again = GammaFedHT(density=0.1, scope="layer")
        again.load_state_dict(compressor.state_dict())
        compressor = again


@pytest.mark.parametrize(("alpha", "reference_lr"), [(100.0, 1e-10), (1e6, 0.05)])
def test_a_threshold_beyond_every_number_is_refused(alpha: float, reference_lr: float) -> None:
    with pytest.raises(ConfigurationError, match="Expected alpha and reference_lr that give a finite threshold but"):
        GammaFedHT(threshold=0.1, alpha=alpha, reference_lr=reference_lr).compress(normal(3, 0), lr=0.1)


def test_calibration_never_settles_on_zero() -> None:
    compressor = HardThreshold(density=0.5)
    for vector in (torch.zeros(10), torch.ones(10)):
        assert compressor.threshold(0.1) is None
        compressor.observe(compressor.compress(vector, lr=0.1))
        compressor.end_round()
    assert compressor.threshold(0.1) == 1.0
