"""Whole runs against the reference federation in NumPy (tests/reference): every column, value and residual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from torch.optim import SGD

from hetfl import HeteroFL, Level
from hetfl.compression import ErrorFeedback, TopK
from hetfl.fleet import Dynamic
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.selection import Uniform
from hetfl.store import MemoryStore
from tests.reference.federation import Federation
from tests.reference.given import given, made_data, made_fleet
from tests.reference.nets import conv_net
from tests.reference.rules import Rules
from tests.reference.run import check_clients, check_rows, check_store, check_values, play

Fit = Callable[..., Trainer]
pytestmark = pytest.mark.usefixtures("double_precision")


def sgd(lr: float, **settings: float) -> Callable[..., SGD]:
    return lambda parameters: SGD(parameters, lr=lr, **settings)  # type: ignore[arg-type]


def conv_shapes(*sizes: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a ConvNet of one input channel, blocks of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (incoming, outgoing) in enumerate(zip((1, *sizes), sizes, strict=False)):
        conv, norm = f"blocks.{number}.conv", f"blocks.{number}.norm"
        shapes |= {f"{conv}.weight": (outgoing, incoming, 3, 3), f"{conv}.bias": (outgoing,)}
        shapes |= {f"{norm}.weight": (outgoing,), f"{norm}.bias": (outgoing,)}
    return {**shapes, "classifier.weight": (classes, sizes[-1]), "classifier.bias": (classes,)}


def test_heterofl_with_top_k_and_server_momentum(fit: Fit, tmp_path: Path) -> None:
    rules = Rules(
        nets={"a": conv_net(1.0, 2), "b": conv_net(0.5, 2), "c": conv_net(0.25, 2)},
        shapes={
            "a": conv_shapes(4, 6, classes=5),
            "b": conv_shapes(2, 3, classes=5),
            "c": conv_shapes(1, 2, classes=5),
        },
        masked=True,
        momentum=0.9,
        weight_decay=0.01,
        clip=0.5,
        density=0.3,
        server_lr=0.8,
        server_momentum=0.5,
        batch=4,
    )
    data = made_data([13, 9, 17, 8, 21, 10], (1, 6, 6), 5, labels=lambda k: [k % 5, (k + 1) % 5, (2 * k) % 5])
    local = LocalTraining(
        epochs=2, batch_size=4, gradient_clip=0.5, optimizer=sgd(0.1, momentum=0.9, weight_decay=0.01)
    )
    parts: Any = {"selection": Uniform(4), "assignment": Dynamic(), "local": local}
    fleet, residuals = made_fleet(tmp_path, 6), MemoryStore()
    net = partial(ConvNet, num_classes=5, hidden=(4, 6))
    module = HeteroFL(
        net,
        {name: Level(name, width) for name, width in zip("abc", (1.0, 0.5, 0.25), strict=True)},
        uplink=ErrorFeedback(TopK(0.3), residuals),
        server_optimizer=sgd(0.8, momentum=0.5),
        fleet=fleet,
        **parts,
    )
    federation = Federation(rules, given(net, data, rules, fleet, **parts))
    rows, evaluation = play(federation, rounds=4)
    trainer = fit(module, data, rounds=4, precision="64-true")
    check_rows(trainer.log_dir, rows)
    check_values(module.submodel("a"), federation.models[0])
    check_store(residuals, federation.residuals)
    trainer.test(module, datamodule=data, verbose=False)
    check_rows(trainer.log_dir, [*rows[:-1], {**rows[-1], **evaluation.test(3)}])
    check_clients(trainer.log_dir, evaluation, 3)
