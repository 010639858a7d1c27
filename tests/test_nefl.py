"""NeFL: nested widths and depths with step sizes, against NumPy; the net with step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.nn import functional as F

from hetfl import FedAvg, Level, testing
from hetfl.aggregators import HolderMean
from hetfl.fleet import Dynamic
from hetfl.models import StepResNet
from tests.reference.given import made_data
from tests.relative_cases import LR, SIZES, STEPS, StepNet, federation, spread, step_gradient
from tests.sparse_cases import Array, client_arrays, values_of

Fit = Callable[..., Trainer]
UNITS = {"a": 4, "b": 2, "c": 2}
DEPTHS = {"a": 2, "b": 2, "c": 1}
LEVELS = {"a": Level("a", depth=2), "b": Level("b", 0.5, depth=2), "c": Level("c", 0.5, depth=1)}


def cut(value: Array, name: str, units: int) -> Array:
    """Return what a level of so many units has of a tensor."""
    if name.endswith((".step", ".bias")):
        return value
    rows, columns = name != "second.weight", name != "first.weight"
    return value[: units if rows else None, : units if columns else None]


@pytest.mark.usefixtures("double_precision")
def test_a_run_equals_numpy(fit: Fit) -> None:
    """The mean is over the holders of an entry; step sizes are averaged within their level."""
    rounds = 5
    module = federation(
        FedAvg,
        net=StepNet,
        levels=LEVELS,
        assignment=Dynamic(),
        aggregator=HolderMean(),
        per_level=["*.step"],
    )
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    fit(module, data, rounds=rounds, precision="64-true")

    def key(name: str, level: str) -> str:
        return f"{name}@{level}" if name.endswith(".step") and level != "a" else name

    for round in range(rounds):
        sums, held = ({name: np.zeros_like(value) for name, value in present.items()} for _ in range(2))
        for client, level in enumerate(module.assignment.levels(round)):
            names = [n for n in present if "@" not in n and not (DEPTHS[level] == 1 and n.startswith("blocks.1"))]
            begun = {name: cut(present[key(name, level)], name, UNITS[level]) for name in names}
            theta = dict(begun)
            for _ in range(STEPS):
                slopes = step_gradient(theta, *client_arrays(data, client), DEPTHS[level])
                theta = {name: theta[name] - LR * slopes[name] for name in names}
            for name in names:
                where = key(name, level)
                sums[where] += spread(theta[name] - begun[name], present[where].shape)
                held[where] += spread(np.ones_like(begun[name]), present[where].shape)
        present = {name: value + sums[name] / np.maximum(held[name], 1) for name, value in present.items()}
    values = values_of(module.net)
    assert len({float(values[f"blocks.0.step{of}"]) for of in ("", "@b", "@c")}) == 3
    for name, value in values.items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)


def test_the_net_of_step_size_one_is_the_plain_one_and_of_step_size_zero_the_skip() -> None:
    net: Any = StepResNet(hidden=(4, 8), norm="group")
    x, block = torch.randn(3, 1, 8, 8), net.stages[0][1]
    h = net.stages[0][0](F.relu(net.stem(x)))
    f = block.second(F.relu(block.first(h)))
    assert torch.equal(block(h), F.relu(f + h))
    block.step.data.fill_(0.25)
    assert torch.allclose(block(h), F.relu(0.25 * f + h))
    block.step.data.zero_()
    assert torch.equal(block(h), h)


def test_levels_nest_and_have_the_documented_sizes() -> None:
    testing.check_net(StepResNet, torch.randn(4, 1, 8, 8), num_outputs=10)
    documented = {1.0: (77_757, 174_976), 0.75: (44_017, 98_788), 0.5: (19_813, 44_232), 0.25: (5_145, 11_308)}
    for width, sizes in documented.items():
        for depth, size in enumerate(sizes, start=1):
            net = StepResNet(width=width, depth=depth)
            assert sum(p.numel() for p in net.parameters()) == size == by_hand([16, 32, 64], width, depth)
            assert f"{size:,}".replace(",", " ") in (StepResNet.__doc__ or "")


def by_hand(hidden: list[int], width: float, depth: int) -> int:
    sizes = [int(size * width) for size in hidden]
    total = 9 * sizes[0] + 2 * sizes[0] + 10 * sizes[-1] + 10
    for before, size in zip([sizes[0], *sizes], sizes, strict=False):
        first = 9 * before * size + 9 * size**2 + 4 * size + 1
        skip = 0 if before == size else before * size + 2 * size
        total += first + skip + (depth - 1) * (2 * 9 * size**2 + 4 * size + 1)
    return total
