"""Compressors that look at tensors: low rank, whole filters, one choice per layer; and residuals that age."""

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
    ChannelThreshold,
    Context,
    Decay,
    DropAfter,
    ErrorFeedback,
    GammaFedHT,
    HardThreshold,
    Keep,
    LowRank,
    Staleness,
    TopK,
)
from hetfl.errors import ConfigurationError
from hetfl.types import Index, Layout
from hetfl.updates import LowRankUpdate, matrix_shape
from hetfl.wire import Expected, decode

LAYOUT = Layout({"conv": (8, 3, 3, 3), "bias": (8,), "linear": (10, 12), "scale": (), "none": (0,)})


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def matrices(vector: Tensor) -> dict[str, np.ndarray]:
    return {
        name: part.numpy().astype(np.float64).reshape(matrix_shape(part.shape))
        for name, part in LAYOUT.views(vector).items()
    }


# Low rank.


def low_rank(rank: int = 2, **settings: object) -> LowRank:
    return LowRank(rank=rank, min_reduction=1.0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [1, 2, 5, 8, 100])
def test_without_steps_the_product_is_the_best_of_its_rank(rank: int) -> None:
    vector = normal(LAYOUT.size)
    update = low_rank(rank, steps=None).apply(vector, Context(0.1, LAYOUT))
    got = matrices(update.to_dense())
    for name, matrix in matrices(vector).items():
        used = dict(zip(LAYOUT.shapes, update.ranks, strict=True))[name]
        if not used:
            assert np.array_equal(got[name], matrix)
            continue
        assert used == min(rank, *matrix.shape)
        left, singular, right = np.linalg.svd(matrix, full_matrices=False)
        best = (left[:, :used] * singular[:used]) @ right[:used]
        np.testing.assert_allclose(got[name], best, atol=1e-5)


def test_one_step_is_powersgds() -> None:
    vector, compressor = normal(LAYOUT.size), low_rank(2)
    for round in range(3):
        starts = {
            name: compressor._start(name, matrix.shape[1], 2).numpy() for name, matrix in matrices(vector).items()
        }
        update = compressor.apply(vector, Context(0.1, LAYOUT))
        got, rights = matrices(update.to_dense()), {}
        for name, matrix in matrices(vector).items():
            if not dict(zip(LAYOUT.shapes, update.ranks, strict=True))[name]:
                continue
            left, _ = np.linalg.qr(matrix @ starts[name])
            rights[name] = matrix.T @ left
            np.testing.assert_allclose(got[name], left @ rights[name].T, atol=1e-4)
        compressor.observe(update, LAYOUT)
        compressor.end_round()
        for name, right in rights.items():  # the warm start is Q, up to its size and the sign of columns
            start = compressor._start(name, right.shape[0], 2).numpy()
            assert np.linalg.matrix_rank(np.hstack([start, right]), tol=1e-4) == 2
        vector = vector + 0.1 * normal(LAYOUT.size, seed=round + 1)


def test_warm_starts_find_the_best_of_its_rank_and_cold_ones_do_not() -> None:
    vector = normal(LAYOUT.size)
    best = float((low_rank(2, steps=None).compress(vector, lr=0.1, layout=LAYOUT).to_dense() - vector).norm())
    errors = {}
    for warm in (True, False):
        compressor = low_rank(2, warm_start=warm)
        for _ in range(60):
            update = compressor.compress(vector, lr=0.1, layout=LAYOUT)
            compressor.observe(update, LAYOUT)
            compressor.end_round()
        errors[warm] = float((update.to_dense() - vector).norm())
    assert errors[True] == pytest.approx(best, rel=1e-3)
    assert errors[False] > 1.05 * best


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_low_rank_is_a_contraction(rank: int, seed: int, steps: bool) -> None:
    vector = normal(LAYOUT.size, seed)
    update = low_rank(rank, steps=1 if steps else None).compress(vector, lr=0.1, layout=LAYOUT)
    assert float((update.to_dense() - vector).norm()) <= float(vector.norm()) * (1 + 1e-5)


def test_tensors_of_any_shape_can_be_products_where_none_has_to_shrink() -> None:
    layout = Layout({"scale": (), "empty": (0, 3), "none": (3, 0), "vector": (5,), "matrix": (2, 3)})
    vector = normal(layout.size)
    update = LowRank(rank=3, min_reduction=0.1).compress(vector, lr=0.1, layout=layout)
    assert isinstance(update, LowRankUpdate)
    assert update.ranks == (1, 0, 0, 1, 2)
    assert update.to_dense().tolist() == pytest.approx(vector.tolist(), abs=1e-6)


def test_small_levels_take_the_leading_rows_of_the_start_and_add_to_it() -> None:
    small = Layout({"linear": (5, 6)})
    compressor = low_rank(1)
    for layout in (Layout({"linear": (10, 12)}), small):
        compressor.observe(compressor.apply(normal(layout.size), Context(0.1, layout)), layout)
    compressor.end_round()
    start = compressor._start("linear", 12, 1)
    assert start.shape == (12, 1)
    assert torch.allclose(compressor._start("linear", 6, 1), start[:6] / start[:6].norm())
    grown = compressor._start("linear", 20, 1)  # a level that has not been seen: the rest is drawn
    assert grown.shape == (20, 1)
    assert bool(grown[12:].any())


def test_what_does_not_shrink_is_sent_as_it_is_and_the_start_is_counted() -> None:
    compressor = LowRank(rank=2, min_reduction=2.0)
    vector = normal(LAYOUT.size)
    update = compressor.apply(vector, Context(0.1, LAYOUT))
    ranks = dict(zip(LAYOUT.shapes, update.ranks, strict=True))
    assert ranks == {"conv": 2, "bias": 0, "linear": 2, "scale": 0, "none": 0}
    assert update.num_sent == 2 * (8 + 27) + 8 + 2 * (10 + 12) + 1
    assert update.num_sent_per_tensor(LAYOUT).tolist() == [70, 8, 44, 1, 0]
    assert torch.equal(LAYOUT.views(update.to_dense())["bias"], LAYOUT.views(vector)["bias"])
    assert compressor.shared_bytes(LAYOUT) == 0  # drawn from the tensors' names
    compressor.observe(update, LAYOUT)
    compressor.end_round()
    assert compressor.shared_bytes(LAYOUT) == 4 * 2 * (27 + 12)
    assert LowRankUpdate.lengths(LAYOUT, update.ranks) == (70, 8, 44, 1, 0)


# Whole filters.


def filters(vector: Tensor, layout: Layout) -> list[tuple[int, int, float]]:
    """Return first entry, end and mean magnitude of every filter, by hand."""
    found = []
    for (_, part), offset in zip(layout.views(vector).items(), layout.offsets, strict=True):
        rows = part.reshape(part.shape[0], -1) if part.dim() > 1 else part.reshape(1, -1)
        for i, row in enumerate(rows if part.numel() else []):
            first = offset + i * row.numel()
            found.append((first, first + row.numel(), float(row.double().abs().mean())))
    return found


def test_filters_are_sent_whole_or_not_at_all() -> None:
    vector = normal(LAYOUT.size)
    update = ChannelThreshold(threshold=0.8).apply(vector, Context(0.1, LAYOUT))
    expected = [i for first, end, mean in filters(vector, LAYOUT) if mean >= 0.8 for i in range(first, end)]
    assert 0 < len(expected) < LAYOUT.size
    assert update.indices.tolist() == expected
    assert torch.equal(update.values, vector[update.indices])


def test_a_threshold_of_zero_sends_all_filters_but_those_of_zeros() -> None:
    vector = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, -1e-30, 0.0, 0.0])
    context = Context(0.1, Layout({"weight": (4, 2), "bias": (2,)}))
    assert ChannelThreshold(threshold=0.0).apply(vector, context).indices.tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 1.0])
def test_a_density_takes_the_filters_of_largest_mean_that_fit(density: float) -> None:
    vector, room, expected = normal(LAYOUT.size), density * LAYOUT.size, set()
    taken = 0
    for number, (first, end, _) in enumerate(sorted(filters(vector, LAYOUT), key=lambda each: -each[2])):
        taken += end - first
        if number and taken > room:
            break
        expected |= set(range(first, end))
    update = ChannelThreshold(density=density).apply(vector, Context(0.1, LAYOUT))
    assert set(update.indices.tolist()) == expected


# One choice per layer.


def test_by_layer_every_tensor_has_its_own_share() -> None:
    vector = normal(LAYOUT.size) * torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    by_layer = TopK(0.1, scope="layer").compress(vector, lr=0.1, layout=LAYOUT)
    assert by_layer.num_sent_per_tensor(LAYOUT).tolist() == [21, 1, 12, 1, 0]
    for part, got in zip(vector.split(LAYOUT.sizes), by_layer.to_dense().split(LAYOUT.sizes), strict=True):
        assert torch.equal(got, TopK(0.1).compress(part, lr=0.1).to_dense())
    assert TopK(0.1).compress(vector, lr=0.1, layout=LAYOUT).num_sent_per_tensor(LAYOUT).tolist() != [21, 1, 12, 1, 0]


def test_by_layer_every_tensor_has_its_own_threshold() -> None:
    sizes = torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    for kind in (HardThreshold, GammaFedHT):
        compressor = kind(density=0.2, scope="layer")
        for client in range(3):
            compressor.observe(compressor.compress(normal(LAYOUT.size, client) * sizes, lr=0.1, layout=LAYOUT), LAYOUT)
        compressor.end_round()
        medians = {}
        for name, offset, n in zip(LAYOUT.shapes, LAYOUT.offsets, LAYOUT.sizes, strict=True):
            if n:
                parts = [(normal(LAYOUT.size, client) * sizes)[offset : offset + n].abs() for client in range(3)]
                kept = max(1, int(0.2 * n))
                medians[name] = sorted(float(part.topk(kept).values.min()) for part in parts)[1]
        vector = normal(LAYOUT.size, 9) * sizes
        got = compressor.compress(vector, lr=0.1, layout=LAYOUT).to_dense()
        for name, part in LAYOUT.views(vector).items():
            if name in medians:
                assert torch.equal(LAYOUT.views(got)[name], torch.where(part.abs() >= medians[name], part, 0.0)), name


# Residuals that age.

INDEX: Index = {"w": (slice(0, 4),)}
POLICIES: dict[str, tuple[Staleness, Callable[[int], float]]] = {
    "keep": (Keep(), lambda age: 1.0),
    "decay": (Decay(0.5), lambda age: 0.5 ** (age - 1)),
    "decay at once": (Decay(0.0), lambda age: float(age == 1)),
    "drop": (DropAfter(3), lambda age: float(age <= 3)),
}


@pytest.mark.parametrize("name", POLICIES)
def test_an_idle_clients_residual_ages(name: str) -> None:
    policy, factor = POLICIES[name]
    feedback = ErrorFeedback(TopK(0.25), staleness=policy)
    delta, kept, before = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.zeros(4), 0
    for round in (0, 1, 3, 7, 8, 20):
        message = feedback.prepare(0, delta, index=INDEX, round=round, lr=0.1)
        sent = decode(message.payload, Expected(round, 0, 4))
        assert message.residual_D is not None
        p = delta + (kept if round == 0 else kept * factor(round - before))
        assert torch.equal(sent.to_dense() + message.residual_D, p)
        if round != 7:  # a refused one: the age goes on
            feedback.accept(message, sent)
            kept, before = message.residual_D, round
        again = ErrorFeedback(TopK(0.25), staleness=policy)
        again.load_state_dict(feedback.state_dict())
        assert (
            again.prepare(0, delta, index=INDEX, round=round + 2, lr=0.1).payload
            == feedback.prepare(0, delta, index=INDEX, round=round + 2, lr=0.1).payload
        )


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_client_held_before_it_stayed_away_ages_wherever_it_lies(name: str) -> None:
    """It comes back at a smaller level, and goes on at the larger one."""
    policy, factor = POLICIES[name]
    feedback, small = ErrorFeedback(HardThreshold(threshold=100.0), staleness=policy), {"w": (slice(0, 2),)}
    kept = torch.zeros(4)
    for round, index, age in [(0, INDEX, 1), (7, small, 7), (8, INDEX, 1)]:
        held = 2 if index is small else 4
        message = feedback.prepare(0, torch.ones(held), index=index, round=round, lr=0.1)
        feedback.accept(message, decode(message.payload, Expected(round, 0, held)))
        kept = kept * factor(age)
        kept[:held] += 1
        assert feedback.residuals.load(0)["w"].tolist() == kept.tolist()
        assert feedback.norm() == pytest.approx(float(kept.norm()))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Decay(1.5), r"rate in \[0, 1\] but got 1.5"),
        (lambda: DropAfter(0), "rounds of at least 1 but got 0"),
        (lambda: LowRank(rank=0), "rank in 1..65535 but got 0"),
        (lambda: LowRank(steps=0), "steps of at least 1, or null"),
        (lambda: LowRank(min_reduction=0), "min_reduction above 0 but got 0"),
        (lambda: LowRank(min_reduction=math.inf), "finite min_reduction above 0 but got inf"),
        (lambda: ChannelThreshold(), "exactly one of threshold and density"),
        (lambda: ChannelThreshold(threshold=1.0, density=0.1), "exactly one of threshold and density"),
        (lambda: ChannelThreshold(density=0.0), r"density in \(0, 1\]"),
        (lambda: ChannelThreshold(threshold=-1.0), "threshold of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        make()
