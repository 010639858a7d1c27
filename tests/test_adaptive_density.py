"""AdaptiveDensity sends as many entries as an uplink carries in a given time: exhaustive search, and encoded sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetfl.compression import AdaptiveDensity, Context, ErrorFeedback, TopK
from hetfl.compression.threshold_pass import SHORTEST
from hetfl.errors import ConfigurationError
from hetfl.wire import dense_size


def most_entries(size: int, room: float, itemsize: int) -> int:
    """Try every number of entries; C(D, k) is computed with exact integers."""
    fits = [
        k
        for k in range(1, size + 1)
        if dense_size(0) + k * itemsize + math.log2(math.comb(size, k)) / 8 <= room * (1 + 1e-12)
    ]
    return max(fits, default=min(1, size))


@given(st.integers(0, 200), st.floats(1, 2000), st.sampled_from([2, 4, 8]))
def test_the_number_of_entries_is_the_largest_that_fits(size: int, room: float, itemsize: int) -> None:
    compressor = AdaptiveDensity(seconds=0.5)
    got = compressor.count(size, 4, Context(0.1, uplink=2 * room, itemsize=itemsize))
    assert got == most_entries(size, room, itemsize)


@pytest.mark.parametrize("half_precision", [False, True])
def test_uploads_take_the_same_time_at_every_uplink_rate(half_precision: bool) -> None:
    feedback = ErrorFeedback(AdaptiveDensity(seconds=2.0), half_precision=half_precision)
    random = torch.Generator().manual_seed(0)
    for client, (size, uplink) in enumerate([(50_000, 2_000.0), (50_000, 20_000.0), (20_000, 5_000.0), (9_000, 900.0)]):
        message = feedback.prepare(
            client, torch.randn(size, generator=random), index={"w": (slice(0, size),)}, round=0, lr=0.1, uplink=uplink
        )
        assert 1.9 < len(message.payload) / uplink < 2.05


def test_a_fast_uplink_sends_all_entries_and_a_slow_uplink_sends_one() -> None:
    vector = torch.tensor([1.0, -3.0, 2.0])
    for uplink, sent in ((1e9, [1.0, -3.0, 2.0]), (1e-3, [-3.0])):
        assert AdaptiveDensity(1.0, default_uplink=uplink).compress(vector, lr=0.1).values.tolist() == sent


def test_long_vectors_are_split_as_by_top_k() -> None:
    size = SHORTEST + 9
    delta_D, residual_D = torch.randn(2, size, generator=torch.Generator().manual_seed(1))
    compressor, context = AdaptiveDensity(1.0), Context(0.1, uplink=20_000.0)
    update, left_D = compressor.split(delta_D, residual_D, context)
    want = TopK(density=(compressor.count(size, 4, context) + 0.5) / size).compress(delta_D + residual_D, lr=0.1)
    assert 1000 < want.num_sent < size // 10
    assert torch.equal(update.to_dense(), want.to_dense())
    assert torch.equal(left_D, want.left_of(delta_D + residual_D))


def test_an_unknown_uplink_rate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client devices with an uplink, or default_uplink, .* got neither"):
        AdaptiveDensity(1.0).compress(torch.ones(3), lr=0.1)
    for arguments in ({"seconds": 0.0}, {"seconds": math.inf}, {"seconds": 1.0, "default_uplink": -1.0}):
        with pytest.raises(ConfigurationError, match="Expected a finite (seconds|default_uplink) above 0 but got"):
            AdaptiveDensity(**arguments)
