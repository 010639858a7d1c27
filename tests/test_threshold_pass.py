"""The fused pass against the plain pass, bit for bit, and both against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="the fused pass needs numba: pip install 'hetfl[fast]'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl import compiled
from hetfl.compression import (
    Compressor,
    Context,
    ErrorFeedback,
    GammaFedHT,
    HardThreshold,
    TopK,
    kernels,
    threshold_pass,
)
from hetfl.compression.hard_threshold import hard_threshold
from hetfl.compression.threshold_pass import Parts, split_fused
from hetfl.compression.top_k import estimated_threshold, split_largest, top_k
from hetfl.errors import RefusedUpdate
from hetfl.layout import Layout
from hetfl.wire import Expected, decode


def by_loop(delta_D: Tensor, residual_D: Tensor | None, threshold: float) -> tuple[list[int], list[float], list[float]]:
    """Return indices, values and the residual, entry by entry in float32."""
    indices, values, left = [], [], []
    with np.errstate(over="ignore"):
        limit = np.float32(threshold)
    for i, delta in enumerate(delta_D.numpy()):
        p = delta if residual_D is None else np.float32(delta + residual_D.numpy()[i])
        if abs(p) >= limit and p != 0:
            indices.append(i)
            values.append(float(p))
            left.append(0.0)
        else:
            left.append(float(p))
    return indices, values, left


def split_plain(delta_D: Tensor, residual_D: Tensor | None, threshold: float) -> Parts:
    """Return the result of the plain operations, without the fused pass."""
    p_D = delta_D if residual_D is None else delta_D + residual_D
    update = hard_threshold(p_D, threshold)
    return Parts(update.indices, update.values, update.left_of(p_D), True)


def bits(vector: Tensor) -> Tensor:
    return vector.view(torch.int32)


def assert_same(got: Parts, want: Parts) -> None:
    assert got.finite
    assert want.finite
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(bits(got.values), bits(want.values))
    assert torch.equal(bits(got.left_D), bits(want.left_D))


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)


@settings(max_examples=200)
@given(st.data())
def test_fused_pass_plain_pass_and_loop_agree_on_any_numbers(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1e-45, 0.1, -0.1]), max_size=40))
    delta_D = torch.tensor(numbers, dtype=torch.float32)
    residual_D = torch.tensor(data.draw(st.permutations(numbers)), dtype=torch.float32)
    residual = data.draw(st.sampled_from([None, residual_D]))
    reached = [abs(number) for number in numbers] or [1.0]
    threshold = data.draw(st.sampled_from([0.0, -0.0, 0.1, 1e-45, 1e39, *reached]))
    fused, plain = (way(delta_D, residual, threshold) for way in (split_fused, split_plain))
    assert_same(fused, plain)
    assert (plain.indices.tolist(), plain.values.tolist(), plain.left_D.tolist()) == by_loop(
        delta_D, residual, threshold
    )


@pytest.mark.parametrize("size", [0, 1, 7, 2047, 2048, 2049, 100_003])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.9, 1.0])
def test_fused_pass_equals_plain_pass_for_any_length_and_density(size: int, density: float) -> None:
    random = torch.Generator().manual_seed(size)
    delta_D, residual_D = (torch.randn(size, generator=random) for _ in range(2))
    threshold = math.sqrt(2) * torch.special.ndtri(torch.tensor(1 - density / 2)).item() if density else math.inf
    for residual in (None, residual_D):
        plain = split_plain(delta_D, residual, threshold)
        assert_same(split_fused(delta_D, residual, threshold), plain)
        out = torch.full((size,), math.nan)
        into = split_fused(delta_D, residual, threshold, out)
        assert_same(into, plain)
        assert into.left_D is out


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2047, 2048, 4999])
def test_non_finite_entries_are_noticed(bad: float, position: int) -> None:
    delta_D = torch.ones(5000)
    delta_D[position] = bad
    for residual in (None, torch.ones(5000)):
        assert not split_fused(delta_D, residual, 2.0).finite


def test_only_long_vectors_use_the_fused_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernel = [], kernels.split

    def counted(*args: Any) -> object:
        calls.append(args)
        return kernel(*args)

    monkeypatch.setattr(kernels, "split", counted)
    long = torch.randn(threshold_pass.SHORTEST, generator=torch.Generator().manual_seed(0))
    for vector, is_fused in [(long, True), (long[1:], False), (long.double(), False)]:
        calls.clear()
        HardThreshold(2.0).split(vector, None, Context(0.1))
        assert bool(calls) == is_fused
    monkeypatch.setattr(compiled, "has_numba", lambda: False)
    calls.clear()
    HardThreshold(2.0).split(long, None, Context(0.1))
    assert not calls


def test_a_buffer_of_another_dtype_is_not_reused() -> None:
    size = threshold_pass.SHORTEST
    feedback, index = ErrorFeedback(HardThreshold(2.0)), {"w": (slice(0, size),)}
    for round, dtype in enumerate((torch.float64, torch.float32)):
        delta_D = torch.ones(size, dtype=dtype)
        message = feedback.prepare(round, delta_D, index=index, round=round, lr=0.1)
        assert message.residual_D is not None
        assert message.residual_D.dtype == dtype
        feedback.accept(message, decode(message.payload, Expected(round, round, size, dtype=dtype)))


def test_one_buffer_is_reused_for_all_lengths() -> None:
    long, places = threshold_pass.SHORTEST, set()
    feedback = ErrorFeedback(HardThreshold(2.0))
    for round, size in enumerate((long + 9, long, long + 5, long + 9)):
        index = {"w": (slice(0, size),)}
        message = feedback.prepare(round, torch.ones(size), index=index, round=round, lr=0.1)
        assert message.residual_D is not None
        assert message.buffer is not None
        assert message.residual_D._base is message.buffer  # not of an array that owns the memory
        places.add(message.residual_D.data_ptr())
        feedback.accept(message, decode(message.payload, Expected(round, round, size)))
        assert torch.equal(feedback.residuals.load(round)["w"], torch.ones(size))
    assert len(places) == 1


def test_an_unaccepted_message_shares_no_memory_with_the_next() -> None:
    size = threshold_pass.SHORTEST
    feedback, index = ErrorFeedback(HardThreshold(2.0)), {"w": (slice(0, size),)}
    messages = [
        feedback.prepare(client, torch.full((size,), float(client)), index=index, round=0, lr=0.1)
        for client in (0, 1, 2)
    ]
    for message in messages[1:]:  # the first message is lost
        feedback.accept(message, decode(message.payload, Expected(0, message.client, size)))
    later = feedback.prepare(3, torch.full((size,), 1.5), index=index, round=0, lr=0.1)
    lost_D = messages[0].residual_D
    assert later.residual_D is not None
    assert lost_D is not None
    assert bool((later.residual_D == 1.5).all())
    assert not lost_D.any()
    assert feedback.residuals.clients() == [1]
    assert torch.equal(feedback.residuals.load(1)["w"], torch.ones(size))


@pytest.mark.parametrize("half_precision", [False, True])
def test_error_feedback_over_long_vectors_keeps_every_bit(half_precision: bool) -> None:
    size, random = threshold_pass.SHORTEST + 5, torch.Generator().manual_seed(1)
    index = {"w": (slice(0, size),)}
    feedback = ErrorFeedback(HardThreshold(threshold=1.5), half_precision=half_precision)
    kept = {0: torch.zeros(size), 1: torch.zeros(size)}
    for round in range(3):
        for client in kept:
            delta_D = torch.randn(size, generator=random)
            message = feedback.prepare(client, delta_D, index=index, round=round, lr=0.1)
            sent = decode(message.payload, Expected(round, client, size))
            assert message.residual_D is not None
            assert torch.equal(sent.to_dense() + message.residual_D, delta_D + kept[client])
            kept[client] = message.residual_D.clone()
            feedback.accept(message, sent)
            assert torch.equal(feedback.residuals.load(client)["w"], kept[client])
    with pytest.raises(RefusedUpdate, match="client 1 but got nan at position 3 of tensor 'w'"):
        feedback.prepare(
            1, torch.full((size,), 0.0).index_fill(0, torch.tensor([3]), math.nan), index=index, round=3, lr=1
        )


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([1e-4, 0.01, 0.3, 1.0]), st.booleans(), st.booleans())
def test_top_k_by_a_sampled_threshold_is_exact(seed: int, density: float, ties: bool, with_residual: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 200_000, (), generator=random))
    delta_D, residual_D = (torch.randn(size, generator=random) for _ in range(2))
    if ties:
        delta_D, residual_D = delta_D.round(decimals=1), residual_D.round(decimals=1)
    p_D = delta_D + residual_D if with_residual else delta_D
    plain = top_k(p_D, density)
    parts = split_largest(delta_D, residual_D if with_residual else None, plain.num_sent, None)
    if parts is None:  # the sample misled, or zeros are among the largest k: the plain way is used
        estimate = estimated_threshold(p_D, None, plain.num_sent)
        assert int((p_D != 0).sum()) < plain.num_sent or estimate > plain.values.abs().min()
        return
    assert torch.equal(parts.indices, plain.indices)
    assert torch.equal(bits(parts.values), bits(plain.values))
    assert torch.equal(bits(parts.left_D), bits(plain.left_of(p_D)))


@pytest.mark.parametrize("half_precision", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(0.01),
        lambda: TopK(0.01, scope="layer"),
        lambda: HardThreshold(threshold=2.0),
        lambda: HardThreshold(density=0.01),
        lambda: GammaFedHT(threshold=2.0, alpha=0.5, law="power"),
        lambda: GammaFedHT(threshold=2.0, alpha=0.5, law="paper", reference_lr=1.0),
        lambda: GammaFedHT(density=0.01),
    ],
)
def test_long_and_short_vectors_are_split_alike_at_every_learning_rate(
    make: Callable[[], Compressor], half_precision: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, random = threshold_pass.SHORTEST + 77, torch.Generator().manual_seed(3)
    layout = Layout({"w": (size - 77,), "b": (77,)})
    compressor, plain = make(), make()
    residual_D = None
    for lr in (0.4, 0.1, 0.2):
        delta_D, context = torch.randn(size, generator=random), Context(lr, layout)
        update, left_D = compressor.split(delta_D, residual_D, context, half_precision=half_precision)
        with monkeypatch.context() as without:
            without.setattr(compiled, "has_numba", lambda: False)
            want, want_left_D = plain.split(delta_D, residual_D, context, half_precision=half_precision)
        assert torch.equal(update.to_dense(), want.to_dense())
        assert torch.equal(bits(left_D), bits(want_left_D))
        assert compressor.threshold(lr) == plain.threshold(lr)
        for each in (compressor, plain):
            each.observe(update, layout)
            each.end_round()
        residual_D = left_D.clone()


def test_the_sampled_threshold_is_rarely_too_high() -> None:
    for seed in range(20):
        p_D = torch.randn(300_000, generator=torch.Generator().manual_seed(seed))
        parts = split_largest(p_D, None, 3000, None)
        assert parts is not None
        assert parts.indices.numel() == 3000
