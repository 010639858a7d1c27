"""Logarithmic codes: against a loop over all magnitudes, on the wire, and with error feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hetfl.codes import Codes, magnitudes
from hetfl.compression import Chain, DynamicRange, ErrorFeedback, HardThreshold, LogQuantizer, TopK
from hetfl.compression.threshold_pass import SHORTEST
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate
from hetfl.wire import Expected, MalformedPayload, decode, encode
from tests.wire_by_hand import mended

BITS = range(2, 9)


def normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def quantised(values: list[float], bits: int) -> Tensor:
    given = torch.tensor(values)
    update = SparseUpdate(given, torch.arange(len(values)), len(values))
    return LogQuantizer(bits).quantised(update, None, None).values


def nearest(values: list[float], bits: int) -> list[float]:
    """Return the nearest of the log-spaced magnitudes, with the sign, by looking at each."""
    magnitudes = [abs(value) for value in values if value] or [0.0]
    low, high, count = np.float32(max(min(magnitudes), max(magnitudes) / 2**60)), max(magnitudes), 2 ** (bits - 1)
    ratio = max(np.float32(1), np.float32((high / float(low)) ** (1 / (count - 1)))) if low else np.float32(1)
    table = [float(low)]
    for _ in range(count - 1):
        table.append(table[-1] * float(ratio))
    rounded = [float(np.float32(entry)) for entry in table]
    return [math.copysign(min(rounded, key=lambda m: (abs(m - abs(v)), m)), v) if v else rounded[0] for v in values]


@given(
    st.lists(st.floats(2**-90, 2**30, width=32) | st.floats(-(2**30), -(2**-90), width=32), max_size=40),
    st.sampled_from(BITS),
)
def test_each_value_is_sent_as_the_nearest_of_the_magnitudes(values: list[float], bits: int) -> None:
    assert quantised(values, bits).tolist() == pytest.approx(nearest(values, bits), rel=1e-6, abs=0)


def test_the_smallest_and_the_largest_magnitude_are_kept() -> None:
    for bits in BITS:
        got = quantised([0.5, -8.0, 3.0, 0.7], bits)
        assert got[0] == 0.5
        assert got[1] == pytest.approx(-8.0, rel=2e-5)


@pytest.mark.parametrize("bits", BITS)
def test_error_feedback_is_exact_and_codes_contract_for_many_vectors(bits: int) -> None:
    """100 000 vectors at all numbers of bits together: what is sent and what is left add up; the residual shrinks."""
    vectors = normal(40 * 14_300, bits).view(-1, 40) * torch.logspace(-6, 6, 14_300)[:, None]
    for half in (0.5, 2.0):  # heavy and light tails
        p = vectors.sign() * vectors.abs() ** half
        sizes = torch.full((len(p),), 40)
        quantiser = LogQuantizer(bits)
        codes, ratio, least = quantiser.quantise(p.flatten().double(), sizes, None)
        sent = Codes(codes.int(), bits, ratio, least, sizes, 40, "logarithmic").to_float().view_as(p)
        left = p - sent
        assert bool((left.norm(dim=1) < p.norm(dim=1)).all())
        assert bool(((sent + left - p).abs() <= 2**-23 * torch.maximum(p.abs(), sent.abs())).all())
        bound = ((ratio - 1) / (ratio + 1))[:, None].double() * p.abs().double()
        assert bool((left.double().abs() <= bound * (1 + 1e-5) + 1e-30).all())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("size", [500, SHORTEST + 500])
def test_a_chain_divides_long_and_short_vectors_into_the_bits_that_travel(scope: str, size: int) -> None:
    layout = Layout({"w": (size - 100,), "b": (100,)})
    index = {name: (slice(0, shape[0]),) for name, shape in layout.shapes.items()}
    feedback = ErrorFeedback(Chain(HardThreshold(threshold=1.5), LogQuantizer(4, scope=scope)))  # type: ignore[arg-type]
    residual = torch.zeros(size)
    for round in range(3):
        delta_D = normal(size, round)
        message = feedback.prepare(0, delta_D, index=index, round=round, lr=0.1)
        update = decode(message.payload, Expected(round, 0, size, layout=layout))
        assert message.residual_D is not None
        p_D = delta_D + residual
        assert torch.equal(message.residual_D, p_D - update.to_dense())
        assert update.num_sent == int((p_D.abs() >= 1.5).sum())
        residual = message.residual_D.clone()
        feedback.accept(message, update)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_entry_at_three_in_a_thousand_takes_thirteen_bits_and_a_half(seed: int) -> None:
    update = Chain(TopK(0.003), LogQuantizer(3)).compress(normal(1_000_000, seed), lr=0.1)
    assert 8 * len(encode(update, round=0, client=0)) / update.num_sent <= 13.5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bucket", [None, 6 * 5_000])
def test_stochastic_codes_are_right_in_the_mean(bits: int, bucket: int | None) -> None:
    values = torch.tensor([0.0, 1e-5, -0.013, 0.2, -0.71, 1.0])
    quantiser = LogQuantizer(bits, bucket=bucket, span=100.0, stochastic=True)
    generator = torch.Generator().manual_seed(3)
    update = quantiser.compress(values.repeat(20_000), lr=0.1, generator=generator)
    draws = update.to_dense().double().view(-1, len(values))
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert bool(((draws.mean(dim=0) - values).abs() <= 4.5 * error + 3e-6).all())
    table = magnitudes(torch.tensor([0.01]), torch.tensor([100 ** (1 / (2 ** (bits - 1) - 1))]), bits)[0].double()
    assert bool(((draws.abs()[..., None] / table - 1).abs().min(dim=-1).values < 1e-5).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, r"bits in 2\.\.8"),
        ({"bits": 9}, r"bits in 2\.\.8"),
        ({"span": 1.0}, "span above 1"),
        ({"stochastic": True}, "Expected a span"),
    ],
)
def test_wrong_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LogQuantizer(**settings)  # type: ignore[arg-type]


def test_a_dense_vector_needs_a_span_and_no_error_feedback() -> None:
    with pytest.raises(ConfigurationError, match="Expected LogQuantizer behind a sparsifier"):
        LogQuantizer().compress(torch.ones(3), lr=0.1)
    with pytest.raises(ConfigurationError, match="Expected enabled: false with a compressor that expands"):
        ErrorFeedback(LogQuantizer(span=8.0))


def block(bits: int, spacing: int, floats: list[float]) -> bytes:
    """Return a message of four values whose block of codes has a header and floats as given."""
    update = Chain(TopK(1.0), LogQuantizer(3)).compress(torch.tensor([1.0, 2.0, -4.0, 8.0]), lr=0.1)
    payload = bytearray(encode(update, round=0, client=0))
    start = payload.rindex(np.float32(1.0).tobytes()) - 8
    payload[start : start + 4] = bytes([bits, 0, spacing, 0])
    payload[start + 8 : start + 16] = np.array(floats, dtype="<f4").tobytes()
    return mended(bytes(payload))


@pytest.mark.parametrize(
    ("bits", "spacing", "floats", "reason"),
    [
        (3, 2, [1.0, 2.0], "affine or logarithmic"),
        (1, 1, [1.0, 2.0], "2 to 8 bits"),
        (9, 1, [1.0, 2.0], "2 to 8 bits"),
        (3, 1, [-1.0, 2.0], "magnitudes"),
        (3, 1, [1.0, 0.5], "magnitudes"),
        (3, 1, [1.0, 1e20], "magnitudes"),
        (3, 1, [math.nan, 2.0], "finite scales"),
    ],
)
def test_malformed_logarithmic_blocks_are_refused(bits: int, spacing: int, floats: list[float], reason: str) -> None:
    with pytest.raises(MalformedPayload, match=reason):
        decode(block(bits, spacing, floats), Expected(0, 0, 4))


def test_a_long_message_decodes_to_the_values_of_its_codes() -> None:
    update = Chain(HardThreshold(threshold=2.0), LogQuantizer(3)).compress(normal(50_000, 1), lr=0.1)
    got = decode(encode(update, round=0, client=0), Expected(0, 0, 50_000))
    assert torch.equal(got.values, update.values)
    affine = Chain(HardThreshold(threshold=2.0), DynamicRange(3)).compress(normal(50_000, 1), lr=0.1)
    plain = normal(50_000, 1)[update.indices]  # type: ignore[attr-defined]
    assert (update.values - plain).norm() < 0.6 * (affine.values - plain).norm()
