"""Quantisers: values by the formulas, unbiased means, contractions, and zeros that stay zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.compression import (
    Chain,
    Compressor,
    Context,
    DynamicRange,
    ErrorFeedback,
    FixedPoint,
    Quantiser,
    RandomK,
    SignEF,
    StochasticQuantizer,
    TopK,
)
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate
from hetfl.wire import Expected, decode

LAYOUT = Layout({"w": (6, 8), "none": (0,), "b": (6,), "scale": ()})


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(compressor: Compressor, vector: Tensor, layout: Layout | None = None, seed: int = 0) -> Tensor:
    return compressor.compress(vector, lr=0.1, layout=layout, generator=chance(seed)).to_dense()


def buckets_of(vector: Tensor, bucket: int | None) -> list[np.ndarray]:
    """Return the buckets of a vector, computed by hand."""
    numbers = vector.numpy().astype(np.float64)
    if bucket is None:
        return np.split(numbers, np.cumsum([48, 0, 6])) if len(numbers) == 55 else [numbers]
    return [numbers[start : start + bucket] for start in range(0, len(numbers), bucket)]


def dynamic_range_by_hand(vector: Tensor, bits: int, bucket: int | None) -> list[float]:
    values = []
    for part in buckets_of(vector, bucket):
        least, greatest = min([0.0, *part]), max([0.0, *part])
        most = 2**bits - 1
        zero = round(-least / (greatest - least) * most) if greatest > least else 0
        if bits > 1:
            zero = min(max(zero, least < 0), most - (greatest > 0))
        steps = [-least / zero if zero else 0.0, greatest / (most - zero) if zero < most else 0.0]
        scale = float(np.float32(max(steps)))
        for number in part:
            code = min(max(round(number / scale) + zero, 0), most) if scale else zero
            values.append(float(np.float32((code - zero) * scale)))
    return values


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
@pytest.mark.parametrize("bucket", [1, 7, 16, None])
@pytest.mark.parametrize("below", [1.0, 1e-3, 1e3])  # how much further the negative values reach
def test_dynamic_range_equals_the_affine_scheme(bits: int, bucket: int | None, below: float) -> None:
    vector = normal(55, seed=bits)
    vector = torch.where(vector < 0, below * vector, vector)
    got = dense(DynamicRange(bits=bits, bucket=bucket), vector, LAYOUT)
    assert got.tolist() == pytest.approx(dynamic_range_by_hand(vector, bits, bucket), rel=1e-6, abs=1e-9)


def test_one_bit_represents_the_sign_with_the_larger_magnitude() -> None:
    for numbers, want in [([0.5, -2.0], [0.0, -2.0]), ([0.5, -0.25], [0.5, 0.0]), ([-1.0, -1.0], [-1.0, -1.0])]:
        assert dense(DynamicRange(bits=1, bucket=None), torch.tensor(numbers)).tolist() == want
    # Deltas with both signs: each sign is sent in turn, and the residuals become zero.
    feedback, index = ErrorFeedback(DynamicRange(bits=1, bucket=None)), {"w": (slice(0, 2),)}
    for round in range(100):
        message = feedback.prepare(0, torch.tensor([1.0, -1.0]), index=index, round=round, lr=0.1)
        feedback.accept(message, decode(message.payload, Expected(round, 0, 2, layout=Layout({"w": (2,)}))))
        assert feedback.norm() < 4


@pytest.mark.parametrize("vector", [normal(55), normal(55).abs(), -normal(55).abs() - 1, torch.zeros(55)])
def test_dynamic_range_keeps_zero_and_errs_by_at_most_half_a_step(vector: Tensor) -> None:
    vector[3] = 0.0
    got = dense(DynamicRange(bits=6, bucket=None), vector)
    span = max(0.0, float(vector.max())) - min(0.0, float(vector.min()))
    assert got[3] == 0
    assert float((got - vector).abs().max()) <= span / 63 / 2 * 1.1


@pytest.mark.parametrize(("bits", "fraction"), [(8, 6), (2, 0), (16, 12), (4, -3)])
def test_fixed_point_rounds_and_saturates(bits: int, fraction: int) -> None:
    vector = torch.cat([normal(500, 1) * 2.0 ** (bits - 2 - fraction), torch.tensor([0.0, 1e6, -1e6])])
    steps = np.rint(vector.numpy().astype(np.float64) * 2.0**fraction)  # half to even
    expected = np.clip(steps, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * 2.0**-fraction
    assert dense(FixedPoint(bits, fraction), vector).tolist() == expected.tolist()


@pytest.mark.parametrize("bucket", [5, None])
def test_signs_have_the_mean_magnitude_of_their_bucket(bucket: int | None) -> None:
    vector = normal(55, seed=4)
    vector[10] = 0.0
    expected = [
        np.float32(np.abs(part).mean()) * (1 if number >= 0 else -1)
        for part in buckets_of(vector, bucket)
        for number in part
    ]
    got = dense(SignEF(bucket), vector, LAYOUT)
    assert got.tolist() == pytest.approx(expected, rel=1e-6)
    parts = buckets_of(vector, bucket)
    error = sum((part**2).sum() - np.abs(part).sum() ** 2 / max(1, len(part)) for part in parts)
    assert float(((got - vector).double() ** 2).sum()) == pytest.approx(error, rel=1e-5)


STOCHASTIC: dict[str, Callable[[], Compressor]] = {
    "QSGD, l2": lambda: StochasticQuantizer(bits=3, bucket=10, norm="l2"),
    "QSGD, max": lambda: StochasticQuantizer(bits=2, bucket=None, norm="max"),
    "fixed point": lambda: FixedPoint(bits=10, fraction_bits=4, stochastic=True),
    "dynamic range": lambda: DynamicRange(bits=2, bucket=10, stochastic=True),
    "random-k, scaled": lambda: RandomK(density=0.25, scaled=True),
    "random-k, scaled, by layer": lambda: RandomK(density=0.25, scaled=True, scope="layer"),
    "random-k, scaled, then QSGD": lambda: Chain(RandomK(0.25, scaled=True), StochasticQuantizer(bits=4)),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_mean_over_many_draws_is_the_vector(name: str) -> None:
    vector, draws = normal(55, seed=7), 1000
    total, squares = torch.zeros(55, dtype=torch.float64), torch.zeros(55, dtype=torch.float64)
    generator = torch.Generator().manual_seed(11)
    for _ in range(draws):
        got = STOCHASTIC[name]().compress(vector, lr=0.1, layout=LAYOUT, generator=generator).to_dense().double()
        total, squares = total + got, squares + got**2
    mean = total / draws
    error = ((squares / draws - mean**2).clamp(min=0) / draws).sqrt()
    # The largest of 55 normal deviations is below 5, except in a few of 100,000 runs.
    assert bool(((mean - vector).abs() <= 5 * error + 1e-6).all())
    assert bool((error > 0).any())


@settings(max_examples=100)
@given(st.integers(2, 10), st.sampled_from(["l2", "max"]), st.integers(0, 2**32))
def test_qsgd_rounds_to_one_of_the_two_nearest_levels(bits: int, norm: str, seed: int) -> None:
    vector = normal(40, seed)
    vector[5] = 0.0
    got = dense(StochasticQuantizer(bits, bucket=40, norm=norm), vector, seed=seed)  # type: ignore[arg-type]
    size = float(vector.double().norm()) if norm == "l2" else float(vector.abs().max())
    levels = got.double().abs() * (2 ** (bits - 1) - 1) / size
    exact = vector.double().abs() * (2 ** (bits - 1) - 1) / size
    assert bool(((levels - levels.round()).abs() < 1e-4).all())
    assert bool(((levels.round() - exact).abs() < 1 + 1e-4).all())
    assert bool(((got == 0) | (got.sign() == vector.sign())).all())
    assert got[5] == 0


def test_random_k_is_a_contraction_in_the_mean() -> None:
    vector, generator = normal(200), torch.Generator().manual_seed(3)
    errors = [
        float((RandomK(0.3).compress(vector, lr=0.1, generator=generator).to_dense() - vector).square().sum())
        for _ in range(1500)
    ]
    assert np.mean(errors) == pytest.approx(0.7 * float(vector.square().sum()), rel=0.02)


def test_random_k_draws_entries_uniformly_and_by_layer_in_proportion() -> None:
    generator, counts = torch.Generator().manual_seed(5), torch.zeros(55)
    for _ in range(4000):
        update = RandomK(0.2).apply(normal(55), Context(0.1, LAYOUT, generator=generator))
        counts[update.indices] += 1
    deviation = (counts - 800) / math.sqrt(800 * 0.8)
    assert float(deviation.abs().max()) < 5
    update = RandomK(0.2, scope="layer").apply(normal(55), Context(0.1, LAYOUT, generator=generator))
    assert update.counts == (9, 0, 1, 1)
    assert update.num_sent_per_tensor(LAYOUT).tolist() == [9, 0, 1, 1]


def test_a_chain_sends_the_sparsifiers_entries_rounded_by_the_quantiser() -> None:
    vector = normal(1000)
    chosen = TopK(0.1).apply(vector, Context(0.1))
    got = Chain(TopK(0.1), DynamicRange(bits=8, bucket=16)).compress(vector, lr=0.1)
    assert isinstance(got, SparseUpdate)
    assert torch.equal(got.indices, chosen.indices)
    assert torch.equal(got.values, dense(DynamicRange(bits=8, bucket=16), chosen.values))
    assert got.codes is not None


def test_a_bucket_per_tensor_covers_only_its_sent_entries() -> None:
    vector = torch.cat([normal(48), torch.zeros(6), torch.tensor([3.0])])
    got = Chain(TopK(0.2, scope="layer"), SignEF()).compress(vector, lr=0.1, layout=LAYOUT)
    assert got.codes is not None
    assert got.codes.sizes.tolist() == [9, 0, 1, 1]
    sent = vector[:48].abs().topk(9).values.mean()
    assert got.to_dense()[:48].abs().max() == pytest.approx(float(sent))
    assert got.to_dense()[54] == 3.0


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "one bit": (lambda: StochasticQuantizer(bits=1), "bits in 2..16 for StochasticQuantizer but got 1"),
    "too many": (lambda: DynamicRange(bits=17), "bits in 1..16 for DynamicRange but got 17"),
    "no bucket": (lambda: DynamicRange(bucket=0), "bucket in 1..4294967295 or null but got 0"),
    "fraction": (lambda: FixedPoint(fraction_bits=1000), "fraction_bits in -100..100 but got 1000"),
    "expands": (lambda: ErrorFeedback(RandomK(0.1, scaled=True)), "enabled: false .* got error feedback with RandomK"),
    "chain expands": (
        lambda: ErrorFeedback(Chain(RandomK(0.1, scaled=True), SignEF())),
        "got error feedback with Chain",
    ),
    "few levels of l2": (
        lambda: ErrorFeedback(StochasticQuantizer(bits=4, bucket=50, norm="l2")),
        "got error feedback with StochasticQuantizer",
    ),
    "few levels of l2 in a tensor": (
        lambda: ErrorFeedback(StochasticQuantizer(bits=8, bucket=None, norm="l2")),
        "got error feedback with StochasticQuantizer",
    ),
    "chain of few levels": (
        lambda: ErrorFeedback(Chain(TopK(0.1), StochasticQuantizer(bits=2, norm="l2"))),
        "got error feedback with Chain",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_impossible_settings_are_refused(case: str) -> None:
    make, expected = WRONG[case]
    with pytest.raises(ConfigurationError, match=expected) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "quantiser",
    [
        StochasticQuantizer(bits=2, bucket=None),
        StochasticQuantizer(bits=4, bucket=49, norm="l2"),
        DynamicRange(bits=1, bucket=None, stochastic=True),
        DynamicRange(bits=2, bucket=None),
    ],
    ids=repr,
)
def test_residuals_stay_bounded_with_error_feedback(quantiser: Quantiser) -> None:
    feedback, norms = ErrorFeedback(quantiser), []
    for round in range(120):
        message = feedback.prepare(
            0, normal(500, round), index={"w": (slice(0, 500),)}, round=round, lr=0.1, generator=chance(round)
        )
        feedback.accept(message, decode(message.payload, Expected(round, 0, 500, layout=Layout({"w": (500,)}))))
        norms.append(feedback.norm())
    assert max(norms[60:]) < 2 * max(norms[:60])


def test_every_quantiser_uses_at_most_the_codes_of_its_bits() -> None:
    vector = normal(5000)
    makers: list[Quantiser] = [StochasticQuantizer(bits=3), FixedPoint(bits=3), DynamicRange(bits=3), SignEF()]
    for quantiser in makers:
        codes = quantiser.compress(vector, lr=0.1, generator=torch.Generator().manual_seed(0)).codes
        assert codes is not None
        assert int(codes.codes.min()) >= 0
        assert int(codes.codes.max()) < 2**codes.bits
