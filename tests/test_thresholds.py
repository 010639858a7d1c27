"""Hard thresholds: selection of entries, dependence on the learning rate, and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.compression import ErrorFeedback, GammaFedHT, HardThreshold
from hetfl.compression.calibration import weighted_median
from hetfl.compression.laws import Law
from hetfl.compression.threshold_pass import SHORTEST
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.piece import Facts
from hetfl.types import Report
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
def test_hard_threshold_keeps_entries_at_or_above_it(numbers: list[float], threshold: float) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    want = [i for i, x in enumerate(vector.tolist()) if abs(x) >= threshold and x != 0]
    for compressor in (HardThreshold(threshold), GammaFedHT(threshold, alpha=0.5, law="power")):
        assert sparse(compressor.compress(vector, lr=0.1)).indices.tolist() == want


def test_an_update_below_the_threshold_sends_no_values_and_decodes() -> None:
    update = HardThreshold(threshold=1.0).compress(torch.full((1000,), 0.99), lr=0.1)
    payload = encode(update, round=0, client=1)
    assert len(payload) == 57  # the header, and the parameter of an empty Rice stream
    assert torch.equal(decode(payload, Expected(0, 1, 1000)).to_dense(), torch.zeros(1000))


@pytest.mark.parametrize("kind", [HardThreshold, GammaFedHT])
@pytest.mark.parametrize(
    ("threshold", "density"), [(None, None), (0.1, 0.1), (-0.1, None), (float("nan"), None), (float("inf"), None)]
)
def test_wrong_thresholds_and_densities_are_refused(
    kind: type[HardThreshold], threshold: float | None, density: float | None
) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected .*threshold.* but got"):
        kind(threshold=threshold, density=density)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": -0.5, "law": "paper"}, "alpha"),
        ({"alpha": math.nan, "law": "power"}, "alpha"),
        ({"alpha": math.inf, "law": "paper"}, "alpha"),
        ({"alpha": 0.5}, "Expected law beside alpha=0.5 but got none: law: power is what alpha meant before"),
        *(({"reference_lr": lr}, "reference_lr") for lr in (0.0, -1.0, math.nan, math.inf)),
        ({"final_lr": 0.0}, "final_lr"),
        ({"final_lr": 0.1, "law": "power"}, "Expected no final_lr with law: power"),
    ],
)
def test_wrong_settings_of_the_law_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GammaFedHT(threshold=0.1, **wrong)


@pytest.mark.parametrize("law", ["paper", "power"])
def test_a_first_learning_rate_of_zero_is_refused_as_reference(law: Law) -> None:
    with pytest.raises(ConfigurationError, match=r"reference_lr.* but got 0.0"):
        GammaFedHT(threshold=0.1, law=law).compress(torch.ones(3), lr=0.0)
    assert GammaFedHT(threshold=0.1, alpha=0.0, law=law).compress(torch.ones(3), lr=0.0).num_sent == 3
    assert GammaFedHT(threshold=0.1, reference_lr=0.1, law=law).compress(torch.ones(3), lr=0.0).num_sent == 3


# Dependence on the learning rate.


def paper(lr: float, first: float, last: float, alpha: float) -> float:
    """Return the value of line 11 of algorithm 1 in the paper."""
    return float(
        np.sqrt(
            lr**alpha * (first * last) ** (alpha / 2) / (lr ** (2 * alpha) + (first * last) ** alpha), dtype=np.float64
        )
    )


@given(st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(0, 3))
def test_the_papers_law_equals_line_11_of_its_algorithm(lr: float, first: float, last: float, alpha: float) -> None:
    compressor = GammaFedHT(threshold=0.3, alpha=alpha, law="paper", reference_lr=first, final_lr=last)
    assert compressor.threshold(lr) == pytest.approx(0.3 * paper(lr, first, last, alpha), rel=1e-12)


def test_the_papers_law_has_its_peak_between_first_and_last_learning_rate() -> None:
    first, last = 0.1, 0.001
    rates = np.geomspace(first, last, 201)
    compressor = GammaFedHT(threshold=1.0, alpha=0.5, law="paper", reference_lr=first, final_lr=last)
    thresholds = [compressor.scale(float(lr)) for lr in rates]
    assert int(np.argmax(thresholds)) == 100
    assert rates[100] == pytest.approx(math.sqrt(first * last))
    assert thresholds[100] == pytest.approx(math.sqrt(0.5))
    assert all(np.diff(thresholds[:101]) > 0)
    assert all(np.diff(thresholds[100:]) < 0)
    constant = GammaFedHT(threshold=1.0, alpha=0.0, law="paper")
    assert {constant.scale(float(lr)) for lr in rates} == {math.sqrt(0.5)}


def test_extreme_learning_rates_do_not_overflow() -> None:
    compressor = GammaFedHT(threshold=1.0, alpha=50.0, law="paper", reference_lr=1e30, final_lr=1e-30)
    assert compressor.scale(1e-300) == 0.0
    assert compressor.scale(0.0) == 0.0
    assert compressor.scale(1.0) == pytest.approx(math.sqrt(0.5))


def test_the_first_and_last_learning_rate_come_from_the_run() -> None:
    compressor = GammaFedHT(threshold=1.0)
    compressor.setup(Facts((5,), rounds=3, lrs=(0.4, 0.2, 0.1), cohort=1))
    assert compressor.scale(0.2) == pytest.approx(math.sqrt(0.5))  # the geometric mean of 0.4 and 0.1
    for lrs, message in [((0.4, 0.0), "final_lr"), ((0.0, 0.4), "reference_lr")]:
        with pytest.raises(ConfigurationError, match=message):
            GammaFedHT(threshold=1.0).setup(Facts((5,), rounds=2, lrs=lrs, cohort=1))
    endless = GammaFedHT(threshold=1.0)
    endless.setup(Facts((5,), rounds=-1, cohort=1))
    with pytest.raises(ConfigurationError, match=r"Expected final_lr, or a number of rounds"):
        endless.begin_round(0.4)


@given(
    st.lists(st.floats(1e-6, 10), min_size=2, max_size=20, unique=True),
    st.floats(0, 3),
    st.floats(1e-4, 1) | st.none(),
)
def test_a_falling_learning_rate_never_raises_the_threshold_of_the_power_law(
    rates: list[float], alpha: float, reference_lr: float | None
) -> None:
    compressor = GammaFedHT(threshold=0.3, alpha=alpha, law="power", reference_lr=reference_lr)
    rates = sorted(rates, reverse=True)
    compressor.compress(torch.ones(1), lr=rates[0])
    thresholds = [compressor.threshold(lr) for lr in rates]
    assert all(got is not None for got in thresholds)
    assert thresholds == sorted(thresholds, reverse=True)  # type: ignore[type-var]
    for lr, got in zip(rates, thresholds, strict=True):
        assert got == pytest.approx(0.3 * math.exp(alpha * (math.log(lr) - math.log(reference_lr or rates[0]))))


@pytest.mark.parametrize(("law", "factor"), [("power", 1.0), ("paper", math.sqrt(0.5))])
def test_a_constant_learning_rate_gives_the_plain_hard_threshold(law: Law, factor: float) -> None:
    plain = HardThreshold(threshold=0.8 * factor)
    for alpha in (0.0, 0.5, 1.0):
        compressor = GammaFedHT(threshold=0.8, alpha=alpha, law=law)
        for seed in range(5):
            got, want = (c.compress(normal(300, seed), lr=0.05) for c in (compressor, plain))
            assert torch.equal(sparse(got).indices, sparse(want).indices)


@pytest.mark.parametrize("size", [300, SHORTEST])
def test_error_feedback_lowers_the_threshold_with_the_learning_rate(size: int) -> None:
    feedback = ErrorFeedback(GammaFedHT(threshold=2.0, alpha=2.0, law="power"))
    for round, lr in enumerate((0.4, 0.2, 0.1)):
        delta_D = normal(size, round)
        message = feedback.prepare(round, delta_D, index={"w": (slice(0, size),)}, round=round, lr=lr)
        sent = decode(message.payload, Expected(round, round, size))
        assert sent.num_sent == int((delta_D.abs() >= 2.0 * (lr / 0.4) ** 2).sum())
    with pytest.raises(ConfigurationError, match=r"reference_lr.* but got 0\.0"):
        ErrorFeedback(GammaFedHT(threshold=0.1)).prepare(
            0, normal(size, 0), index={"w": (slice(0, size),)}, round=0, lr=0.0
        )


def test_alpha_one_keeps_the_density_under_a_falling_learning_rate() -> None:
    """Deltas and learning rate shrink by a factor of 10: α = 1 keeps the density, α = 0 loses nearly all entries."""
    vector = normal(20_000, 3)
    densities = {}
    for alpha in (0.0, 1.0):
        compressor = GammaFedHT(threshold=2.0, alpha=alpha, law="power")
        before = compressor.compress(vector, lr=0.1).num_sent
        after = compressor.compress(0.1 * vector, lr=0.01).num_sent
        densities[alpha] = after / before
    assert densities[1.0] == pytest.approx(1, abs=0.01)
    assert densities[0.0] < 0.01


@pytest.mark.parametrize("size", [300, SHORTEST])
def test_clients_with_more_samples_have_a_lower_threshold(size: int) -> None:
    feedback = ErrorFeedback(HardThreshold(threshold=1.0, weighting="samples"))
    feedback.setup(Facts((10, 20, 30), rounds=1, lrs=(0.1,), cohort=3, parameters={"w": torch.zeros(size)}))
    delta_D = normal(size, 0)
    for client, samples in enumerate((10, 20, 30)):
        message = feedback.prepare(client, delta_D, index={"w": (slice(0, size),)}, round=0, lr=0.1, samples=samples)
        sent = decode(message.payload, Expected(0, client, size))
        assert sent.num_sent == int((delta_D.abs() * (samples / 20) ** (2 / 3) >= 1.0).sum())


# Calibration.


def slow_weighted_median(values: list[float], weights: list[int]) -> float:
    """Return the lower median of the values, each repeated as often as its weight."""
    repeated = sorted(value for value, weight in zip(values, weights, strict=True) for _ in range(weight))
    return repeated[(len(repeated) - 1) // 2]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 30)), min_size=1, max_size=12))
def test_weighted_median_equals_a_slow_reference(pairs: list[tuple[float, int]]) -> None:
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
    # The threshold is now set and does not change.
    update = sparse(compressor.compress(vectors[1], lr=0.1))
    assert update.indices.tolist() == [i for i, x in enumerate(vectors[1].tolist()) if abs(x) >= want]
    compressor.observe(update)
    compressor.end_round()
    assert compressor.threshold(0.1) == want


def test_calibration_continues_until_an_update_is_accepted() -> None:
    compressor = GammaFedHT(density=0.1, alpha=1.0, law="power")
    for round, lr in enumerate([0.4, 0.2]):
        for client in range(3):
            update = compressor.compress(normal(100, client), lr=lr)
            assert update.num_sent == 10
            if round == 1:
                compressor.observe(update)
        compressor.end_round()
        assert (compressor.threshold(lr) is None) == (round == 0)
    initial = float(np.median([np.sort(np.abs(normal(100, client).numpy()))[-10] for client in range(3)]))
    assert compressor.threshold(0.2) == pytest.approx(initial)  # equal to that of the calibration round
    assert compressor.threshold(0.1) == pytest.approx(initial / 2)


def test_the_reference_lr_of_a_tensor_is_that_of_its_calibration() -> None:
    """Deltas shrink with the learning rate: at α = 1 every tensor keeps its density, also one calibrated later."""
    compressor = GammaFedHT(density=0.1, alpha=1.0, law="power", scope="layer")
    shallow, deep = Layout({"first": (1000,)}), Layout({"first": (1000,), "last": (1000,)})
    for round in range(8):
        lr, layout = 0.1 * 0.5**round, shallow if round < 4 else deep
        update = compressor.compress(lr * normal(layout.size, round), lr=lr, layout=layout)
        assert all(70 <= sent <= 130 for sent in update.num_sent_per_tensor(layout).tolist()), round
        compressor.observe(update, layout)
        compressor.end_round()
        again = GammaFedHT(density=0.1, alpha=1.0, law="power", scope="layer")
        again.load_state_dict(compressor.state_dict())
        compressor = again


@pytest.mark.parametrize(("alpha", "reference_lr"), [(100.0, 1e-10), (1e6, 0.05)])
def test_an_infinite_threshold_is_refused(alpha: float, reference_lr: float) -> None:
    with pytest.raises(ConfigurationError, match="Expected alpha and reference_lr that give a finite threshold but"):
        GammaFedHT(threshold=0.1, alpha=alpha, law="power", reference_lr=reference_lr).compress(normal(3, 0), lr=0.1)


def test_calibration_never_gives_a_zero_threshold() -> None:
    compressor = HardThreshold(density=0.5)
    for vector in (torch.zeros(10), torch.ones(10)):
        assert compressor.threshold(0.1) is None
        compressor.observe(compressor.compress(vector, lr=0.1))
        compressor.end_round()
    assert compressor.threshold(0.1) == 1.0


def test_calibration_allows_for_accumulating_residuals() -> None:
    """λ² is the k-th magnitude times 0.3 ‖Δ‖₁ / k, if that is the larger one; reports of the first round tell ‖Δ‖₁."""
    for density, delta_D in [(0.01, normal(5000, 1)), (0.9, torch.arange(5000.0))]:
        compressor = HardThreshold(density=density)
        update = compressor.compress(delta_D, lr=0.1)
        compressor.observe(update, report=Report(0, "a", 5, 0.0, extras=compressor.report(delta_D)))
        compressor.end_round()
        numbers = np.sort(np.abs(delta_D.double().numpy()))[::-1]
        count = int(density * 5000)
        assert compressor.threshold(0.1) == pytest.approx(
            math.sqrt(numbers[count - 1] * max(numbers[count - 1], 0.3 * numbers.sum() / count))
        )
