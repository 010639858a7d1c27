"""The contract of every compressor, and further properties of each. A new compressor adds one line to MEMBERS."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    LogQuantizer,
    LowRank,
    RandomK,
    SignEF,
    StochasticQuantizer,
    TopK,
)
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.piece import Facts
from hetfl.testing import check_compressor
from hetfl.updates import SparseUpdate, Update
from hetfl.wire import Expected, decode


def planned(compressor: Compressor) -> Compressor:
    """Return a compressor of a run of a hundred rounds of ten clients."""
    compressor.setup(Facts((5,) * 10, rounds=100, lrs=(0.1,) * 50 + (0.01,) * 50, cohort=10))
    compressor.begin_round(0.1)
    return compressor


MEMBERS: dict[str, Callable[[], Compressor]] = {
    "Identity": Identity,
    "AdaptiveDensity": lambda: AdaptiveDensity(seconds=2.0, default_uplink=60.0),
    "TopK": lambda: TopK(density=0.1),
    "TopK, by weight": lambda: TopK(density=0.1, by="weight"),
    "TopK, by weight in a layer": lambda: TopK(density=0.1, scope="layer", by="weight"),
    "HardThreshold": lambda: HardThreshold(threshold=0.5),
    "HardThreshold, calibrated": lambda: HardThreshold(density=0.1),
    "GammaFedHT": lambda: GammaFedHT(threshold=0.5, alpha=0.5, law="power"),
    "GammaFedHT, calibrated": lambda: GammaFedHT(density=0.1, reference_lr=0.1, final_lr=0.01),
    "TopK, by layer": lambda: TopK(density=0.1, scope="layer"),
    "HardThreshold, by layer": lambda: HardThreshold(density=0.1, scope="layer"),
    "GammaFedHT, by layer": lambda: GammaFedHT(density=0.1, scope="layer"),
    "RandomK": lambda: RandomK(density=0.1),
    "RandomK, by layer": lambda: RandomK(density=0.1, scope="layer"),
    "ChannelThreshold": lambda: ChannelThreshold(threshold=0.5),
    "ChannelThreshold, by density": lambda: ChannelThreshold(density=0.3),
    "StochasticQuantizer": lambda: StochasticQuantizer(bits=4, bucket=16),
    "StochasticQuantizer, l2": lambda: StochasticQuantizer(bits=8, bucket=512, norm="l2"),
    "StochasticQuantizer, by tensor": lambda: StochasticQuantizer(bits=8, bucket=None),
    "FixedPoint": lambda: FixedPoint(bits=8, fraction_bits=6),
    "FixedPoint, stochastic": lambda: FixedPoint(bits=12, fraction_bits=8, stochastic=True),
    "DynamicRange": lambda: DynamicRange(bits=8, bucket=16),
    "DynamicRange, stochastic, by tensor": lambda: DynamicRange(bits=3, bucket=None, stochastic=True),
    "SignEF": SignEF,
    "LowRank": lambda: LowRank(rank=1, min_reduction=1.0),
    "LowRank, exact": lambda: LowRank(rank=2, steps=None, min_reduction=1.0),
    "Chain": lambda: Chain(TopK(density=0.2), DynamicRange(bits=8, bucket=16)),
    "Chain, random, by tensor": lambda: Chain(RandomK(density=0.5, scope="layer"), SignEF()),
    "Chain, logarithmic": lambda: Chain(TopK(density=0.2), LogQuantizer(bits=3)),
    "Chain, logarithmic, by layer": lambda: Chain(HardThreshold(density=0.1), LogQuantizer(bits=4, scope="layer")),
    "LogQuantizer, stochastic": lambda: LogQuantizer(bits=5, bucket=16, span=1e3, stochastic=True),
    "HardThreshold, budget": lambda: planned(HardThreshold(budget=0.1)),
    "GammaFedHT, budget": lambda: planned(GammaFedHT(budget=60_000)),
    "TopK, by learning rate": lambda: planned(TopK(density=0.1, schedule="lr")),
    "Chain, low rank": lambda: Chain(LowRank(rank=1, min_reduction=1.0), StochasticQuantizer(bits=8)),
}

SPARSIFIERS = {
    *(
        name
        for name in MEMBERS
        if name.startswith(("Identity", "AdaptiveDensity", "TopK", "HardThreshold", "GammaFedHT"))
    ),
    *("RandomK", "RandomK, by layer", "ChannelThreshold", "ChannelThreshold, by density"),
}
"""Compressors that send unchanged values."""

LAYOUTS: dict[int, dict[str, tuple[int, ...]]] = {
    0: {"none": (0,)},
    1: {"scale": ()},
    50: {"w": (5, 3, 3), "b": (5,)},
    5: {"v": (5,)},
    1000: {"conv": (10, 9, 3, 3), "conv.bias": (10,), "linear": (10, 17), "linear.bias": (10,)},
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

VECTORS["linear"] = torch.arange(1000.0) / 500 - 1

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
def test_the_description_of_a_compressor_has_every_constructor_argument(make: Callable[[], Compressor]) -> None:
    compressor = make()
    assert list(compressor.settings()) == list(inspect.signature(type(compressor)).parameters)
    assert type(compressor)(**compressor.settings()).describe() == compressor.describe()


def layout_of(vector: Tensor) -> Layout:
    return Layout(LAYOUTS[vector.numel()])


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@members
def test_every_compressor_fulfils_the_contract(make: Callable[[], Compressor]) -> None:
    check_compressor(make)


@pytest.mark.parametrize("name", [name for name, make in MEMBERS.items() if not make().expands])
@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
@pytest.mark.parametrize("half_precision", [False, True])
def test_sent_plus_kept_is_delta_plus_residual(name: str, vector: Tensor, half_precision: bool) -> None:
    if half_precision and bool((vector.abs() > 60_000).any()):
        pytest.skip("overflows float16")
    layout = layout_of(vector)
    feedback = ErrorFeedback(MEMBERS[name](), half_precision=half_precision)
    index = {tensor: tuple(slice(0, size) for size in shape) for tensor, shape in layout.shapes.items()}
    before = torch.zeros_like(vector)
    for round in range(3):
        given = {"generator": chance(round), "start": lambda: torch.ones_like(vector)}
        message = feedback.prepare(5, vector, index=index, round=round, lr=0.1, **given)  # type: ignore[arg-type]
        sent = decode(message.payload, Expected(round, 5, vector.numel(), layout=layout))
        assert message.residual_D is not None
        p_D, u_D = vector + before, sent.to_dense()
        assert torch.equal(message.residual_D, p_D - u_D)
        off_D = (u_D + message.residual_D - p_D).abs()
        if name in SPARSIFIERS and not half_precision:
            assert not bool(off_D.any())
        else:  # one rounding for the difference, one for the sum
            assert bool((off_D <= 2**-23 * torch.maximum(p_D.abs(), u_D.abs())).all())
        feedback.accept(message, sent)
        feedback.end_round(0)
        before = message.residual_D


@members
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_vectors_are_refused_naming_client_and_tensor(make: Callable[[], Compressor], bad: float) -> None:
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
def test_only_one_dimensional_vectors_are_accepted(make: Callable[[], Compressor]) -> None:
    with pytest.raises(ValueError, match=r"flat vector from client 2 but got shape \(2, 3\)"):
        make().compress(torch.ones(2, 3), lr=0.1, client=2)


# Identity and top-k.


def test_identity_sends_everything() -> None:
    vector = VECTORS["wide"]
    assert torch.equal(Identity().compress(vector, lr=0.1).to_dense(), vector)
    assert Identity().threshold(0.1) is None


@settings(max_examples=200)
@given(
    st.lists(st.integers(-3, 3) | st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60),
    st.sampled_from([0.001, 0.1, 0.29, 0.5, 1.0]),
)
def test_top_k_equals_a_stable_sort_by_magnitude(numbers: list[float], density: float) -> None:
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
