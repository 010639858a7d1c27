"""Low-rank factors: the best approximation of a rank, PowerSGD's step, and the warm start that clients share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.compression import Context, LowRank
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import LowRankUpdate, matrix_shape

LAYOUT = Layout({"conv": (8, 3, 3, 3), "bias": (8,), "linear": (10, 12), "scale": (), "none": (0,)})


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def matrices(vector: Tensor) -> dict[str, np.ndarray]:
    return {
        name: part.numpy().astype(np.float64).reshape(matrix_shape(part.shape))
        for name, part in LAYOUT.views(vector).items()
    }


def low_rank(rank: int = 2, **settings: object) -> LowRank:
    return LowRank(rank=rank, min_reduction=1.0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [1, 2, 5, 8, 100])
def test_without_steps_the_product_is_the_best_low_rank_approximation(rank: int) -> None:
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


def test_one_step_equals_powersgd() -> None:
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
            left, triangle = np.linalg.qr(matrix @ starts[name])
            left = left * np.where(triangle.diagonal() < 0, -1.0, 1.0)
            rights[name] = matrix.T @ left
            np.testing.assert_allclose(got[name], left @ rights[name].T, atol=1e-4)
        compressor.observe(update, LAYOUT)
        compressor.end_round()
        for name, right in rights.items():  # the warm start is Q up to a factor
            start = compressor._start(name, right.shape[0], 2).numpy()
            np.testing.assert_allclose(start, right / np.linalg.norm(right), atol=1e-4)
        vector = vector + 0.1 * normal(LAYOUT.size, seed=round + 1)


def test_warm_starts_converge_to_the_best_approximation_and_cold_starts_do_not() -> None:
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


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_opposite_clients_do_not_cancel_in_the_warm_start(seed: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    left, right = random.normal(size=10), random.normal(size=12)
    layout, compressor = Layout({"linear": (10, 12)}), low_rank(1, steps=steps)
    for sign in (1, -1):
        vector = torch.tensor(np.outer(sign * left, right).ravel(), dtype=torch.float32)
        compressor.observe(compressor.apply(vector, Context(0.1, layout)), layout)
    compressor.end_round()
    start = compressor._start("linear", 12, 1).numpy().ravel()
    cosine = abs(start @ right) / np.linalg.norm(start) / np.linalg.norm(right)
    assert cosine == pytest.approx(1.0, abs=1e-6)


@given(st.integers(0, 2**32))
def test_right_factors_do_not_depend_on_rotations_of_the_left(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix, (rotation, _) = random.normal(size=(10, 12)), np.linalg.qr(random.normal(size=(10, 10)))
    layout, factors = Layout({"linear": (10, 12)}), []
    for rotated in (matrix, rotation @ matrix):
        vector = torch.tensor(rotated.ravel(), dtype=torch.float64)
        update = low_rank(3).apply(vector, Context(0.1, layout))
        factors.append(update.values[30:].numpy())
    np.testing.assert_allclose(factors[0], factors[1], atol=1e-8)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_low_rank_is_a_contraction(rank: int, seed: int, steps: bool) -> None:
    vector = normal(LAYOUT.size, seed)
    update = low_rank(rank, steps=1 if steps else None).compress(vector, lr=0.1, layout=LAYOUT)
    assert float((update.to_dense() - vector).norm()) <= float(vector.norm()) * (1 + 1e-5)


def test_tensors_of_any_shape_are_factored_without_a_minimum_reduction() -> None:
    layout = Layout({"scale": (), "empty": (0, 3), "none": (3, 0), "vector": (5,), "matrix": (2, 3)})
    vector = normal(layout.size)
    update = LowRank(rank=3, min_reduction=0.1).compress(vector, lr=0.1, layout=layout)
    assert isinstance(update, LowRankUpdate)
    assert update.ranks == (1, 0, 0, 1, 2)
    assert update.to_dense().tolist() == pytest.approx(vector.tolist(), abs=1e-6)


def test_small_levels_use_and_update_the_leading_rows_of_the_start() -> None:
    small = Layout({"linear": (5, 6)})
    compressor = low_rank(1)
    for layout in (Layout({"linear": (10, 12)}), small):
        compressor.observe(compressor.apply(normal(layout.size), Context(0.1, layout)), layout)
    compressor.end_round()
    start = compressor._start("linear", 12, 1)
    assert start.shape == (12, 1)
    assert torch.allclose(compressor._start("linear", 6, 1), start[:6] / start[:6].norm())
    grown = compressor._start("linear", 20, 1)  # an unseen level: the rest of the start is drawn
    assert grown.shape == (20, 1)
    assert bool(grown[12:].any())


@pytest.mark.parametrize("columns", [0.0, 1.0])
def test_a_client_whose_update_is_zero_does_not_move_the_warm_start(columns: float) -> None:
    layout, vector, starts = Layout({"linear": (10, 12)}), normal(120), list[Tensor]()
    left = torch.full((10, 2), columns)  # the columns are equal, the right ones opposite: the product is 0
    right = 1e20 * normal(12, 1)[:, None] * torch.tensor([1.0, -1.0])
    hostile = LowRankUpdate(torch.cat([left.flatten(), right.flatten()]), layout, (2,))
    assert not bool(hostile.to_dense().any())
    for others in ([], [hostile]):
        compressor = low_rank(2)
        for update in (compressor.apply(vector, Context(0.1, layout)), *others):
            compressor.observe(update, layout)
        compressor.end_round()
        starts.append(compressor._start("linear", 12, 2))
    torch.testing.assert_close(*starts, atol=1e-5, rtol=0)


def test_a_left_factor_that_is_not_orthonormal_counts_by_its_product() -> None:
    layout, compressor, left, right = Layout({"linear": (10, 12)}), low_rank(2), normal(20), normal(24, 1)
    compressor.observe(LowRankUpdate(torch.cat([left, right]), layout, (2,)), layout)
    product = left.view(10, 2).double() @ right.view(12, 2).double().T
    torch.testing.assert_close(compressor._sums["linear"].norm(), product.norm())


def test_the_warm_start_has_the_rank_of_the_server_and_no_tensor_that_is_sent_whole() -> None:
    compressor, ranks = LowRank(rank=2, min_reduction=2.0), (5, 1, 5, 1, 0)
    compressor.observe(LowRankUpdate(normal(sum(LowRankUpdate.lengths(LAYOUT, ranks))), LAYOUT, ranks), LAYOUT)
    compressor.end_round()
    shapes = {name: tuple(start.shape) for name, start in compressor._starts.items()}
    assert shapes == {"conv": (27, 2), "linear": (12, 2)}


def test_tensors_that_do_not_shrink_are_sent_whole_and_the_start_is_charged() -> None:
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 0}, "rank in 1..65535 but got 0"),
        ({"steps": 0}, "steps of at least 1, or null"),
        ({"min_reduction": 0}, "min_reduction above 0 but got 0"),
        ({"min_reduction": math.inf}, "finite min_reduction above 0 but got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        LowRank(**settings)  # type: ignore[arg-type]
