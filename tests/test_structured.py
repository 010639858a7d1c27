"""Compressors that use tensors: whole filters, one choice per layer; and residuals that age."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
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
    Staleness,
    TopK,
)
from hetfl.errors import ConfigurationError
from hetfl.layout import Index, Layout
from hetfl.wire import Expected, decode

LAYOUT = Layout({"conv": (8, 3, 3, 3), "bias": (8,), "linear": (10, 12), "scale": (), "none": (0,)})


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# Whole filters.


def filters(vector: Tensor, layout: Layout) -> list[tuple[int, int, float]]:
    """Return start, end and mean magnitude of every filter, computed by hand."""
    spans = []
    for (_, part), offset in zip(layout.views(vector).items(), layout.offsets, strict=True):
        rows = part.reshape(part.shape[0], -1) if part.dim() > 1 else part.reshape(1, -1)
        for i, row in enumerate(rows if part.numel() else []):
            first = offset + i * row.numel()
            spans.append((first, first + row.numel(), float(row.double().abs().mean())))
    return spans


def test_filters_are_sent_whole_or_not_at_all() -> None:
    vector = normal(LAYOUT.size)
    update = ChannelThreshold(threshold=0.8).apply(vector, Context(0.1, LAYOUT))
    expected = [i for first, end, mean in filters(vector, LAYOUT) if mean >= 0.8 for i in range(first, end)]
    assert 0 < len(expected) < LAYOUT.size
    assert update.indices.tolist() == expected
    assert torch.equal(update.values, vector[update.indices])


def test_a_threshold_of_zero_sends_all_nonzero_filters() -> None:
    vector = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, -1e-30, 0.0, 0.0])
    context = Context(0.1, Layout({"weight": (4, 2), "bias": (2,)}))
    assert ChannelThreshold(threshold=0.0).apply(vector, context).indices.tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 1.0])
def test_a_density_selects_the_filters_with_the_largest_means(density: float) -> None:
    vector, room, expected = normal(LAYOUT.size), density * LAYOUT.size, set()
    sent_size = 0
    for number, (first, end, _) in enumerate(sorted(filters(vector, LAYOUT), key=lambda each: -each[2])):
        sent_size += end - first
        if number and sent_size > room:
            break
        expected |= set(range(first, end))
    update = ChannelThreshold(density=density).apply(vector, Context(0.1, LAYOUT))
    assert set(update.indices.tolist()) == expected


# One choice per layer.


def test_by_layer_density_applies_to_every_tensor() -> None:
    vector = normal(LAYOUT.size) * torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    by_layer = TopK(0.1, scope="layer").compress(vector, lr=0.1, layout=LAYOUT)
    assert by_layer.num_sent_per_tensor(LAYOUT).tolist() == [21, 1, 12, 1, 0]
    for part, got in zip(vector.split(LAYOUT.sizes), by_layer.to_dense().split(LAYOUT.sizes), strict=True):
        assert torch.equal(got, TopK(0.1).compress(part, lr=0.1).to_dense())
    assert TopK(0.1).compress(vector, lr=0.1, layout=LAYOUT).num_sent_per_tensor(LAYOUT).tolist() != [21, 1, 12, 1, 0]


def test_by_layer_every_tensor_has_a_separate_threshold() -> None:
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
        if round != 7:  # update 7 is refused, and the age continues
            feedback.accept(message, sent)
            kept, before = message.residual_D, round
        again = ErrorFeedback(TopK(0.25), staleness=policy)
        again.load_state_dict(feedback.state_dict())
        assert (
            again.prepare(0, delta, index=INDEX, round=round + 2, lr=0.1).payload
            == feedback.prepare(0, delta, index=INDEX, round=round + 2, lr=0.1).payload
        )


def test_a_residual_ages_from_the_round_in_which_its_update_was_taken() -> None:
    """The update of round 0 arrives in round 20, and the client begins again in the round after."""
    feedback, delta = ErrorFeedback(TopK(0.25), staleness=DropAfter(1)), torch.tensor([4.0, 3.0, 2.0, 1.0])
    feedback.begin_round(0, 0.1)
    message = feedback.prepare(0, delta, index=INDEX, round=0, lr=0.1)
    feedback.begin_round(20, 0.1)
    feedback.accept(message, decode(message.payload, Expected(0, 0, 4)))
    feedback.note(1, 0, 1.0)
    assert message.residual_D is not None
    for round, factor in ((20, 1.0), (21, 1.0), (22, 0.0)):
        again = feedback.prepare(0, delta, index=INDEX, round=round, lr=0.1)
        sent = decode(again.payload, Expected(round, 0, 4))
        assert again.residual_D is not None
        assert torch.equal(sent.to_dense() + again.residual_D, delta + factor * message.residual_D)
    assert feedback.lend(1, INDEX, delta)[1] == 20


@pytest.mark.parametrize("name", POLICIES)
def test_residuals_outside_the_current_level_also_age(name: str) -> None:
    """The client returns at a smaller level, and then trains the larger level again."""
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
        (lambda: ChannelThreshold(), "exactly one of threshold and density"),
        (lambda: ChannelThreshold(threshold=1.0, density=0.1), "exactly one of threshold and density"),
        (lambda: ChannelThreshold(density=0.0), r"density in \(0, 1\]"),
        (lambda: ChannelThreshold(threshold=-1.0), "threshold of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        make()
