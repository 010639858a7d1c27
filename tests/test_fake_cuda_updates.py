"""Compressors, aggregators and the server's step on a card that is not there, with the numbers of the CPU.

Values of a message must come to the host, so compressors may wait; but no operation may mix devices, and what a
compressor returns stays on the card. Updates reach aggregators from the wire, on the CPU, while the sums are on the
card; a hook may put updates on the card, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gpu_checks import AGGREGATORS, GLOBAL, global_tensors, moved, played, updates
from torch import Tensor
from torch.optim import SGD, Adam

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.aggregators.server_step import server_step
from hetfl.compression import Compressor, ErrorFeedback
from hetfl.compression.base import Context
from hetfl.testing.compressors import LAYOUTS
from hetfl.testing.rules import random
from hetfl.types import Report
from hetfl.wire import Expected, decode
from tests.fake_cuda import CARD, fake_card, mark, on_card
from tests.test_compressors import MEMBERS

VECTOR = torch.randn(1000, generator=random(0))
SIZE, LAYOUT = len(VECTOR), LAYOUTS[1000]


def compressed(compressor: Compressor, vector: Tensor) -> Tensor:
    start = torch.randn(SIZE, generator=random(2)).to(vector)
    context = Context(0.1, LAYOUT, None, random(0), start=lambda: start)
    return compressor.compress_in(vector, context).to_dense()


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
def test_every_compressor_works_on_the_card(make: Callable[[], Compressor]) -> None:
    expected = compressed(make(), VECTOR)
    with fake_card():
        dense = compressed(make(), VECTOR.to(CARD))
    assert on_card(dense)
    assert torch.equal(mark(dense, False), expected)


def messages(make: Callable[[], Compressor], device: torch.device | str) -> list[Tensor]:
    """Return what the server decodes of two messages of a client that has a residual in the second round."""
    compressor = make()
    feedback, decoded = ErrorFeedback(compressor, enabled=not compressor.expands), list[Tensor]()
    index = {name: tuple(slice(0, size) for size in shape) for name, shape in LAYOUT.shapes.items()}
    for round in range(2):
        message = feedback.prepare(
            *(0, VECTOR.to(device)), index=index, round=round, lr=0.1, generator=random(round), start=VECTOR.clone
        )
        update = decode(message.payload, Expected(round, 0, SIZE, layout=LAYOUT))
        feedback.accept(message, update)
        feedback.end_round(round)
        decoded.append(update.to_dense())
    return decoded


@pytest.mark.parametrize("name", ["GammaFedHT, calibrated", "Chain", "Chain, logarithmic", "LowRank", "RandomK"])
def test_messages_from_the_card_have_the_bytes_of_the_cpu(name: str) -> None:
    expected = messages(MEMBERS[name], "cpu")
    with fake_card():
        got = messages(MEMBERS[name], CARD)
    for one, other in zip(got, expected, strict=True):
        assert not on_card(one)
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", AGGREGATORS.values(), ids=AGGREGATORS)
@pytest.mark.parametrize("masks", [False, True])
def test_every_aggregator_works_on_the_card(make: Callable[[], Aggregator], masks: bool) -> None:
    for sparse in (False, True) if make().takes_sparse else (False,):
        expected = played(make, global_tensors("cpu"), updates(masks, sparse))
        for place in ("cpu", CARD):
            with fake_card():
                got = played(make, global_tensors(CARD), moved(updates(masks, sparse), place))
            for ours, theirs in zip(got, expected, strict=True):
                assert all(on_card(ours[name]) for name in GLOBAL)
                assert all(torch.equal(mark(ours[name].detach().clone(), False), theirs[name]) for name in GLOBAL)


@pytest.mark.parametrize("make", [partial(SGD, lr=1.0, momentum=0.9), partial(Adam, lr=0.1)])
def test_the_servers_step_is_that_of_the_cpu(make: Callable[..., torch.optim.Optimizer]) -> None:
    def stepped(device: torch.device | str) -> dict[str, Tensor]:
        tensors, report = global_tensors(device), Report(0, "a", 3, 0.0)
        optimizer = make([tensor for tensor in tensors.values() if tensor.requires_grad])
        for _ in range(2):
            mean = HolderMean()
            mean.reset(tensors)
            for update, part, _ in updates(False, True)[:2]:
                mean.update(update, part, report)
            server_step(optimizer, optimizer.step, tensors, *mean.compute())
        return tensors

    expected = stepped("cpu")
    with fake_card():
        got = stepped(CARD)
    for name, tensor in expected.items():
        assert on_card(got[name])
        assert torch.allclose(mark(got[name].detach(), False), tensor, rtol=0, atol=1e-12)
