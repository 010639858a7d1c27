"""LowRank's steps of subspace iteration, one by one in NumPy, from a known start: Q of the previous round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hetfl.compression import LowRank
from hetfl.layout import Layout

LAYOUT = Layout({"w": (6, 5)})


def sent(compressor: LowRank, matrix: np.ndarray) -> np.ndarray:
    update = compressor.compress(torch.from_numpy(matrix.ravel()), lr=0.1, layout=LAYOUT)
    compressor.observe(update, LAYOUT)
    compressor.end_round()
    return update.to_dense().view(6, 5).numpy()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_given_number_of_subspace_iterations_is_done(steps: int) -> None:
    """The row space of the sent product is that of Q, from which the next round starts."""
    random = np.random.default_rng(3)
    compressor = LowRank(rank=2, steps=steps, min_reduction=0.5)
    before = sent(compressor, random.normal(size=(6, 5)))
    right = np.linalg.svd(before)[2][:2].T
    matrix = random.normal(size=(6, 5))
    results = []
    for _ in range(8):
        left = np.linalg.qr(matrix @ right)[0]
        right = matrix.T @ left
        results.append(left @ right.T)
    actual = sent(compressor, matrix)
    apart = [float(np.abs(actual - result).max()) for result in results]
    assert apart[steps - 1] < 1e-9
    assert min(distance for step, distance in enumerate(apart, start=1) if step != steps) > 1e-4
