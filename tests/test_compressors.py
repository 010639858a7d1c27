"""The contract of every compressor, and what each promises beyond it. A new compressor is one line in MEMBERS."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.compression import Compressor, ErrorFeedback, GammaFedHT, HardThreshold, Identity, TopK
from hetfl.errors import ConfigurationError
from hetfl.types import DenseUpdate, Layout, SparseUpdate, Update
from hetfl.wire import Expected, decode

MEMBERS: dict[str, Callable[[], Compressor]] = {
    "Identity": Identity,
    "TopK": lambda: TopK(density=0.1),
    "HardThreshold": lambda: HardThreshold(threshold=0.5),
    "HardThreshold, calibrated": lambda: HardThreshold(density=0.1),
    "GammaFedHT": lambda: GammaFedHT(threshold=0.5, alpha=0.5),
    "GammaFedHT, calibrated": lambda: GammaFedHT(density=0.1, reference_lr=0.1),
}

VECTORS = {
    "empty": torch.zeros(0),
    "one element": torch.tensor([-0.7]),
    "zero": torch.zeros(50),
    "constant": torch.full((50,), -0.25),
    "normal": torch.randn(1000, generator=torch.Generator().manual_seed(0)),
    "wide": torch.randn(1000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-30, 30, 1000),
    "negative zero and denormal": torch.tensor([-0.0, 1e-45, -1e-40, 0.0, 2.0]),
}

members = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())


def normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def bits(vector: Tensor) -> Tensor:
    return vector.view(torch.int32)


def sparse(update: Update) -> SparseUpdate:
    assert isinstance(update, SparseUpdate)
    return update


# The contract.


@members
def test_a_checkpoint_knows_it_by_every_argument_of_its_constructor(make: Callable[[], Compressor]) -> None:
    compressor = make()
    assert list(compressor.settings()) == list(inspect.signature(type(compressor)).parameters)
    assert type(compressor)(**compressor.settings()).describe() == compressor.describe()


@members
@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_update_covers_the_vector_and_leaves_it_alone(make: Callable[[], Compressor], vector: Tensor) -> None:
    before = vector.clone()
    update = make().compress(vector, lr=0.1)
    assert isinstance(update, DenseUpdate | SparseUpdate)
    assert update.size == vector.numel()
    assert update.to_dense().shape == vector.shape
    assert update.to_dense().dtype == vector.dtype
    assert 0 <= update.num_sent <= update.size
    assert torch.equal(bits(vector), bits(before))
    if isinstance(update, SparseUpdate):
        assert update.indices.dtype == torch.int64
        assert bool((update.indices.diff() > 0).all())
        assert torch.equal(bits(update.values), bits(vector[update.indices]))


@members
@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_sent_plus_kept_is_delta_plus_residual(make: Callable[[], Compressor], vector: Tensor) -> None:
    feedback = ErrorFeedback(make())
    index = {"w": (slice(0, vector.numel()),)}
    before = torch.zeros_like(vector)
    for round in range(3):
        message = feedback.prepare(5, vector, index=index, round=round, lr=0.1)
        sent = decode(message.payload, Expected(round, 5, vector.numel()))
        assert message.residual_D is not None
        assert torch.equal(sent.to_dense() + message.residual_D, vector + before)
        feedback.accept(message, sent)
        feedback.end_round()
        before = message.residual_D


@members
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_is_refused_naming_client_and_tensor(make: Callable[[], Compressor], bad: float) -> None:
    layout = Layout({"conv.weight": (2, 3), "none": (0,), "conv.bias": (4,), "scale": ()})
    for position, where in [
        (0, "0 of tensor 'conv.weight'"),
        (6, "0 of tensor 'conv.bias'"),
        (10, "0 of tensor 'scale'"),
    ]:
        vector = torch.ones(11)
        vector[position] = bad
        with pytest.raises(ValueError, match=f"client 23 but got {bad} at position {where}"):
            make().compress(vector, lr=0.1, layout=layout, client=23)
        with pytest.raises(ValueError, match=f"a client but got {bad} at position {position}"):
            make().compress(vector, lr=0.1)


@members
def test_only_flat_vectors(make: Callable[[], Compressor]) -> None:
    with pytest.raises(ValueError, match=r"flat vector from client 2 but got shape \(2, 3\)"):
        make().compress(torch.ones(2, 3), lr=0.1, client=2)


@members
def test_state_makes_the_same_compressor_again(make: Callable[[], Compressor]) -> None:
    first = make()
    for round in range(3):
        for client in range(3):
            first.observe(first.compress(normal(200, 10 * round + client), lr=0.1 * 0.9**round))
        if round < 2:
            first.end_round()
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        buffer.seek(0)
        again = make()
        again.load_state_dict(torch.load(buffer, weights_only=True))  # noqa: TID251, as Lightning reads a checkpoint
        assert again.state_dict() == first.state_dict()
        assert again.threshold(0.05) == first.threshold(0.05)
        vector = normal(200, 99)
        assert torch.equal(again.compress(vector, lr=0.05).to_dense(), first.compress(vector, lr=0.05).to_dense())


@members
def test_refused_updates_leave_the_state_alone(make: Callable[[], Compressor]) -> None:
    compressor = make()
    for client in range(4):
        compressor.compress(normal(50, client), lr=0.1)
    before = compressor.threshold(0.1)
    compressor.end_round()
    assert compressor.threshold(0.1) == before


# Identity and top-k.


def test_identity_sends_everything() -> None:
    vector = VECTORS["wide"]
    assert torch.equal(Identity().compress(vector, lr=0.1).to_dense(), vector)
    assert Identity().threshold(0.1) is None


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(-3, 3) | st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60),
    st.sampled_from([0.001, 0.1, 0.29, 0.5, 1.0]),
)
def test_top_k_is_a_stable_sort_by_magnitude(numbers: list[float], density: float) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    count = max(1, math.floor(density * len(numbers)))
    order = np.argsort(-np.abs(vector.numpy()), kind="stable")
    update = sparse(TopK(density).compress(vector, lr=0.1))
    assert update.indices.tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_density_outside_the_unit_interval_is_refused(density: float) -> None:
    for make in (TopK, lambda d: HardThreshold(density=d), lambda d: GammaFedHT(density=d)):
        with pytest.raises(ConfigurationError, match="density in"):
            make(density)
