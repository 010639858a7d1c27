"""InclusiveFL's momentum distillation: the published value, a run against NumPy, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from hetfl import DepthFL, FedAvg, Level
from hetfl.aggregators import HolderMean
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.hooks import MomentumDistillation
from hetfl.models import MultiExitConvNet
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.conftest import small_module
from tests.reference.given import made_data
from tests.relative_cases import LR, SIZES, STEPS, StepNet, federation, step_gradient
from tests.sparse_cases import Tensors, client_arrays, values_of

Fit = Callable[..., Trainer]
DEPTHS = {"a": 3, "b": 2, "c": 1}
LEVELS = {name: Level(name, depth=depth) for name, depth in DEPTHS.items()}


def test_the_published_value() -> None:
    """0.8 * 0.5 + 0.2 * mean(1, 3) = 0.8."""
    hook = MomentumDistillation(blocks="blocks.*.")
    names = [f"blocks.{i}.w" for i in range(3)]
    hook.setup(Facts(parameters={name: torch.zeros(1) for name in names}))
    parts = {"a": Part(dict.fromkeys(names, (slice(0, 1),))), "c": Part({names[0]: (slice(0, 1),)})}
    hook.begin_round(0, 0.1)
    small, report = DenseUpdate(torch.tensor([0.5])), Report(1, "c", 1, 0.0)
    assert hook.on_update(small, parts["c"], report) is small
    hook.observe(DenseUpdate(torch.tensor([9.0, 1.0, 3.0])), parts["a"], Report(0, "a", 1, 0.0))
    hook.begin_round(1, 0.1)
    assert hook.on_update(small, parts["c"], report).to_dense().item() == pytest.approx(0.8)
    assert hook.on_update(small, parts["c"], Report(1, "c", 1, 0.0, model=1)) is small
    hook.begin_round(2, 0.1)
    assert hook.on_update(small, parts["c"], report) is small


def test_clients_without_a_block_have_no_momentum() -> None:
    hook, head = MomentumDistillation(blocks="blocks.*."), Part({"head.w": (slice(0, 1),)})
    hook.setup(Facts(parameters={"blocks.0.w": torch.zeros(1), "head.w": torch.zeros(1)}))
    hook.begin_round(0, 0.1)
    hook.observe(DenseUpdate(torch.ones(1)), head, Report(0, "c", 1, 0.0))
    hook.begin_round(1, 0.1)
    update = DenseUpdate(torch.ones(1))
    assert hook.on_update(update, Part({"blocks.0.w": (slice(0, 1),)}), Report(0, "b", 1, 0.0)) is update


@pytest.mark.usefixtures("double_precision")
def test_a_run_equals_numpy(fit: Fit) -> None:
    rounds, beta = 6, 0.3
    module = federation(
        FedAvg,
        net=partial(StepNet, depth=3),
        levels=LEVELS,
        assignment=Dynamic(),
        aggregator=HolderMean(),
        hooks=[MomentumDistillation(beta, "blocks.*.")],
    )
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    fit(module, data, rounds=rounds, precision="64-true")
    before: dict[int, list[Tensors]] = {}
    mixed = 0
    for round in range(rounds):
        now: dict[int, list[Tensors]] = {}
        moves: list[Tensors] = []
        for client, level in enumerate(module.assignment.levels(round)):
            depth = DEPTHS[level]
            names = [n for n in present if not n.startswith("blocks") or int(n.split(".")[1]) < depth]
            theta = {name: present[name] for name in names}
            for _ in range(STEPS):
                slopes = step_gradient(theta, *client_arrays(data, client), depth)
                theta = {name: theta[name] - LR * slopes[name] for name in names}
            move = {name: theta[name] - present[name] for name in names}
            now.setdefault(depth, []).append(move)
            deeper = [d for d in sorted(before) if d > depth]
            if deeper:
                mixed += 1
                move = dict(move)
                for leaf in ("step", "linear.weight"):
                    larger = [u[f"blocks.{j}.{leaf}"] for u in before[deeper[0]] for j in range(depth, deeper[0])]
                    last = f"blocks.{depth - 1}.{leaf}"
                    move[last] = (1 - beta) * move[last] + beta * np.mean(larger, axis=0)
            moves.append(move)
        for name in present:
            held = [move[name] for move in moves if name in move]
            present[name] = present[name] + (np.mean(held, axis=0) if held else 0.0)
        before = now
    assert mixed > 5
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)


def inclusive(hidden: tuple[int, ...] = (8, 8, 8), depths: tuple[int, ...] = (3, 2), **changes: Any) -> Any:
    levels = {name: Level(name, depth=depth) for name, depth in zip("abc", depths, strict=False)}
    settings = {"distillation": False, "deepest_only": True, "hooks": [MomentumDistillation()]}
    return small_module(DepthFL, net=partial(MultiExitConvNet, hidden=hidden), levels=levels, **settings, **changes)


def test_what_is_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"beta in \[0, 1\] for MomentumDistillation but got 1\.5"):
        MomentumDistillation(1.5)
    with pytest.raises(ConfigurationError, match=r"one \* in blocks, .* but got 'stages'"):
        MomentumDistillation(blocks="stages")
    with pytest.raises(ConfigurationError, match=r"blocks that match tensors, such as .* but got 'stages\."):
        fit(small_module(hooks=[MomentumDistillation()]), rounds=1)
    with pytest.raises(ConfigurationError, match=r"of equal shapes .* \[\(8, 8, 3, 3\), \(16, 8, 3, 3\)\] of '.+': "):
        fit(inclusive((8, 8, 16)), rounds=1)
    unequal = {f"stages.{block}.trunk.{leaf}": torch.zeros(2, leaf == "b", block) for block in (1, 2) for leaf in "ab"}
    unequal["stages.2.trunk.a"] = unequal["stages.1.trunk.a"]
    with pytest.raises(ConfigurationError, match=r"but got \[\(2, 1, 1\), \(2, 1, 2\)\] of 'b': "):
        MomentumDistillation().setup(Facts(parameters=unequal))
    with pytest.raises(ConfigurationError, match="give the smallest level more than one block"):
        fit(inclusive(depths=(3, 1)), rounds=3)


def test_it_is_resumed_with_the_same_bits(fit: Fit, tmp_path: Any) -> None:
    whole, first, again = (inclusive() for _ in range(3))
    fit(whole, rounds=3, name="whole")
    fit(first, rounds=1, name="first").save_checkpoint(tmp_path / "one.ckpt")
    fit(again, rounds=3, name="again", ckpt=str(tmp_path / "one.ckpt"))
    for p, q in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q)
    plain = inclusive()
    plain.hooks.named["MomentumDistillation"].beta = 0.0
    fit(plain, rounds=3, name="plain")
    assert any(not torch.equal(p, q) for p, q in zip(whole.net.parameters(), plain.net.parameters(), strict=True))
