"""The server's step under every kind of torch optimizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from hetfl.aggregators.server_step import server_step

OPTIMIZERS: list[Callable[[list[nn.Parameter]], Optimizer]] = [
    lambda p: SGD(p, lr=1.0),
    lambda p: SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    lambda p: SGD(p, lr=0.5, momentum=0.9, nesterov=True),
    lambda p: Adam(p, lr=0.1, amsgrad=True),
    lambda p: AdamW(p, lr=0.1, weight_decay=0.5),
    lambda p: RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    lambda p: Adagrad(p, lr=0.1, initial_accumulator_value=0.2),
]


def step(optimizer: Optimizer, p: nn.Parameter, delta: Tensor, holders: Tensor) -> None:
    server_step(optimizer, optimizer.step, {"p": p}, {"p": delta}, {"p": holders})


def test_sgd_of_rate_one_adds_the_mean_delta() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    step(SGD([p], lr=1.0), p, torch.tensor([0.25, -0.5]), torch.ones(2))
    assert p.tolist() == [1.25, 1.5]
    assert p.grad is None


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_entries_without_holders_keep_value_and_state_bit_for_bit(
    make: Callable[[list[nn.Parameter]], Optimizer],
) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6))
    optimizer = make([p])
    held = torch.tensor([1.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    for round in range(4):
        everyone = round in (0, 2)  # the state exists before the entries are skipped, and is used again later
        holders = torch.ones(6) if everyone else held
        before, states = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items() if v.shape == p.shape}
        step(optimizer, p, torch.randn(6) * (holders > 0), holders)
        if not everyone:
            skipped = holders == 0
            assert torch.equal(p.detach()[skipped], before[skipped])
            assert not torch.equal(p.detach()[~skipped], before[~skipped])
            for key, state in states.items():
                assert torch.equal(optimizer.state[p][key][skipped], state[skipped]), key


def test_entries_never_held_keep_fresh_optimizer_state() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    first, second = Adam([p], lr=0.1), Adam([q], lr=0.1)
    step(first, p, torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]))
    assert first.state[p]["exp_avg"][1] == 0
    step(second, q, torch.tensor([0.5]), torch.tensor([1.0]))
    assert p[0] == q[0]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_scalar_without_holders_keeps_value_and_state(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    p, q = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    for parameter, skipped in ((p, True), (q, False)):
        optimizer = make([parameter])
        for delta, holders in ((0.5, 1.0), *([(0.0, 0.0)] * skipped), (0.25, 1.0)):
            step(optimizer, parameter, torch.tensor(delta), torch.tensor(holders))
    assert torch.equal(p, q)


def test_float_buffers_add_the_plain_delta() -> None:
    p, mean = nn.Parameter(torch.zeros(1)), torch.tensor([1.0, 2.0])
    optimizer = Adam([p], lr=0.1)
    ones = {"p": torch.ones(1), "mean": torch.ones(2)}
    server_step(
        optimizer, optimizer.step, {"p": p, "mean": mean}, {"p": torch.ones(1), "mean": torch.tensor([0.5, -1.0])}, ones
    )
    assert mean.tolist() == [1.5, 1.0]
