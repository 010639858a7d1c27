"""Chains of a sparsifier and a quantiser: residuals of every pair, calibration of thresholds, and use of the uplink."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hetfl.compression import (
    AdaptiveDensity,
    Chain,
    ChannelThreshold,
    Compressor,
    DynamicRange,
    ErrorFeedback,
    FixedPoint,
    GammaFedHT,
    HardThreshold,
    Identity,
    LowRank,
    Quantiser,
    RandomK,
    SignEF,
    StochasticQuantizer,
    TopK,
)
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import Update
from hetfl.wire import Expected, decode, encode

LAYOUT = Layout({"conv": (10, 9, 3, 3), "none": (0, 4), "bias": (10,), "scale": ()})
INDEX = {name: tuple(slice(0, size) for size in shape) for name, shape in LAYOUT.shapes.items()}

SPARSIFIERS: list[Callable[[], Compressor]] = [
    Identity,
    lambda: AdaptiveDensity(seconds=2.0, default_uplink=60.0),
    lambda: TopK(0.1),
    lambda: TopK(0.1, scope="layer"),
    lambda: HardThreshold(density=0.1),
    lambda: GammaFedHT(density=0.1, scope="layer"),
    lambda: RandomK(0.1),
    lambda: RandomK(0.1, scope="layer"),
    lambda: ChannelThreshold(density=0.3),
    lambda: LowRank(rank=1, min_reduction=1.0),
]
QUANTISERS: list[Callable[[], Quantiser]] = [
    lambda: StochasticQuantizer(bits=3, bucket=7),
    lambda: FixedPoint(bits=5, fraction_bits=2, stochastic=True),
    lambda: DynamicRange(bits=1, bucket=5),
    lambda: DynamicRange(bits=16, bucket=None, stochastic=True),
    SignEF,
]


def normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def exchanged(feedback: ErrorFeedback, delta: Tensor, round: int, lr: float = 0.1) -> tuple[Update, int]:
    """Compress a delta with error feedback; return the update that the server decodes, and its bytes."""
    generator = torch.Generator().manual_seed(round)
    message = feedback.prepare(0, delta, index=INDEX, round=round, lr=lr, generator=generator)
    sent = decode(message.payload, Expected(round, 0, LAYOUT.size, layout=LAYOUT))
    assert message.residual_D is not None
    assert encode(sent, round=round, client=0, half_precision=feedback.half_precision) == message.payload
    feedback.accept(message, sent)
    return sent, len(message.payload)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda make: repr(make()))
@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda make: repr(make()))
@pytest.mark.parametrize("half_precision", [False, True])
def test_every_pair_keeps_unsent_values_in_the_residual(
    sparsifier: Callable[[], Compressor], quantiser: Callable[[], Quantiser], half_precision: bool
) -> None:
    feedback = ErrorFeedback(Chain(sparsifier(), quantiser()), half_precision=half_precision)
    before = torch.zeros(LAYOUT.size)
    for round in range(3):
        delta = normal(LAYOUT.size, round)
        sent, _ = exchanged(feedback, delta, round)
        feedback.end_round(0)
        left = feedback.residuals.read(0, INDEX, delta)
        left = torch.zeros_like(delta) if left is None else left.clone()  # the next residual reuses its memory
        p_D, u_D = delta + before, sent.to_dense()
        assert torch.equal(left, p_D - u_D)
        assert bool(((u_D + left - p_D).abs() <= 2**-23 * torch.maximum(p_D.abs(), u_D.abs())).all())
        before = left


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda make: repr(make()))
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_threshold_is_calibrated_as_without_a_quantiser(quantiser: Callable[[], Quantiser], scope: str) -> None:
    plain = HardThreshold(density=0.1, scope=scope)  # type: ignore[arg-type]
    within = HardThreshold(density=0.1, scope=scope)  # type: ignore[arg-type]
    delta = normal(LAYOUT.size, 0) ** 3  # heavy-tailed, so that the k-th magnitude would be quantised to 0
    updates = []
    for compressor in (plain, Chain(within, quantiser())):
        feedback = ErrorFeedback(compressor)
        updates.append(exchanged(feedback, delta, 0)[0])
        feedback.end_round(0)
        updates.append(exchanged(feedback, delta, 1)[0])
    assert plain.state_dict()["initial"] == within.state_dict()["initial"]
    assert torch.equal(updates[2].to_dense(), updates[0].to_dense())
    assert [update.codes is None for update in updates] == [True, True, True, False]


def test_a_zero_tensor_does_not_delay_the_codes() -> None:
    feedback = ErrorFeedback(Chain(HardThreshold(density=0.1, scope="layer"), SignEF()))
    delta = normal(LAYOUT.size, 0)
    LAYOUT.views(delta)["bias"].zero_()
    coded = []
    for round in range(3):
        coded.append(exchanged(feedback, delta, round)[0].codes is not None)
        feedback.end_round(0)
    assert coded == [False, True, True]


@pytest.mark.parametrize("bits", [1, 4, 12])
def test_codes_also_fill_the_uplink(bits: int) -> None:
    feedback = ErrorFeedback(Chain(AdaptiveDensity(1.0), DynamicRange(bits, bucket=None)), half_precision=True)
    message = feedback.prepare(0, normal(50_000, 0), index={"w": (slice(0, 50_000),)}, round=0, lr=0.1, uplink=5_000.0)
    assert 4_800 < len(message.payload) < 5_200


@pytest.mark.parametrize("sparsifier", [SignEF(), Chain(TopK(0.1), SignEF())], ids=repr)
def test_a_compressor_that_sends_codes_is_refused_as_sparsifier(sparsifier: Compressor) -> None:
    with pytest.raises(ConfigurationError, match="sparsifier that sends floating-point numbers for Chain but got "):
        Chain(sparsifier, DynamicRange())
