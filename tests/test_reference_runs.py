"""Whole runs against the reference federation in NumPy (tests/reference): every column, value and residual."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR

from hetfl import DepthFL, FedAvg, HeteroFL, Level
from hetfl.aggregators import HolderMean, QFedAvg
from hetfl.compression import ErrorFeedback, HardThreshold, TopK
from hetfl.compression.staleness import DropAfter
from hetfl.fleet import Dynamic
from hetfl.local import FedDyn, LocalTraining
from hetfl.models import ConvNet
from hetfl.selection import Uniform
from hetfl.store import MemoryStore
from tests.reference.cases import Fit, Scripted, compare, conv_shapes, exit_shapes, one_level, sgd
from tests.reference.federation import Federation
from tests.reference.given import given, made_data, made_fleet
from tests.reference.nets import conv_net, exits
from tests.reference.rules import Rules
from tests.reference.run import check_store
from tests.reference.torch_nets import Exits, Mlp

pytestmark = pytest.mark.usefixtures("double_precision")


def test_heterofl_with_top_k_and_server_momentum_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    rules = Rules(
        nets={"a": conv_net(1.0, 2), "b": conv_net(0.5, 2), "c": conv_net(0.25, 2)},
        shapes={
            "a": conv_shapes(4, 6, classes=5),
            "b": conv_shapes(2, 3, classes=5),
            "c": conv_shapes(1, 2, classes=5),
        },
        masked=True,
        lr=0.3,
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
        epochs=2, batch_size=4, gradient_clip=0.5, optimizer=sgd(0.3, momentum=0.9, weight_decay=0.01)
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
    rows, _, _ = compare(fit, module, data, federation, rounds=4)
    check_store(residuals, federation.residuals)
    assert all(0.25 < row["density"] < 0.35 for row in rows)
    assert len({federation.given.level(0, t) for t in range(4)}) > 1


def test_depthfl_with_feddyn_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    """Memories of clients and server use the sent updates, which top-k makes sparse."""
    depths = {"a": 3, "b": 2, "c": 1}
    rules = Rules(
        nets={name: exits(depth) for name, depth in depths.items()},
        shapes={name: exit_shapes(depth) for name, depth in depths.items()},
        ramp_rounds=3,
        lr=0.4,
        gamma=0.9,
        feddyn=0.3,
        density=0.6,
        batch=5,
    )
    data = made_data([13, 9, 17, 8, 21, 10])
    memories, residuals, penalty = MemoryStore(), MemoryStore(), 0.3
    local = LocalTraining(
        epochs=2,
        batch_size=5,
        optimizer=sgd(0.4),
        scheduler=lambda optimizer: ExponentialLR(optimizer, 0.9),
        penalty=FedDyn(penalty, memories),
    )
    parts: Any = {"selection": Uniform(3), "assignment": Dynamic(), "local": local}
    fleet = made_fleet(tmp_path, 6)
    module = DepthFL(
        Exits,
        {name: Level(name, depth=depth) for name, depth in depths.items()},
        ramp_rounds=3,
        uplink=ErrorFeedback(TopK(0.6), residuals),
        fleet=fleet,
        **parts,
    )
    federation = Federation(rules, given(Exits, data, rules, fleet, **parts))
    _, evaluation, _ = compare(fit, module, data, federation, rounds=5)
    assert evaluation.clients(4) != evaluation.clients(4, submodels=True)
    check_store(residuals, federation.residuals)
    check_store(memories, federation.memories)


def test_q_fedavg_with_failing_clients_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    """The worst tenth of 21 clients are two clients."""
    rules = one_level(lr=0.5, q=2.0, gamma=0.5, momentum=0.5, batch=6)
    data = made_data([6 + 3 * (k % 4) for k in range(21)], labels=lambda k: [[0, 1, 2], [k % 3, (k + 1) % 3]][k % 2])
    local = LocalTraining(
        epochs=2,
        batch_size=6,
        optimizer=sgd(0.5, momentum=0.5),
        scheduler=lambda optimizer: ExponentialLR(optimizer, 0.5),
    )
    parts: Any = {"selection": Uniform(6), "assignment": Dynamic(), "local": local}
    fleet = made_fleet(tmp_path, 21, failure_rate=[0.3] * 21)
    module = FedAvg(Mlp, aggregator=QFedAvg(2.0), fleet=fleet, **parts)
    federation = Federation(rules, given(Mlp, data, rules, fleet, **parts))
    rows, evaluation, _ = compare(fit, module, data, federation, rounds=3)
    assert 0 < rows[-1]["lost_total"] < 12
    lowest = sorted(each for each in evaluation.clients(2) if each is not None)[:3]
    assert lowest[0] < lowest[1] < lowest[2], "the worst clients must have different accuracies"


@pytest.mark.filterwarnings("ignore:.*update of client 3 at level a refused")
def test_a_threshold_with_dropped_residuals_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    """Client 0 returns after exactly the rounds that its residual is kept, client 1 after one round more."""
    rules = one_level(density=0.4, calibrated=True, oldest=2, adam=True, server_lr=0.05, batch=4, momentum=0.9)
    data = made_data([13, 9, 17, 8, 11])
    data.setup()
    data.client_data(3).inputs.fill_(math.nan)
    local = LocalTraining(epochs=1, batch_size=4, optimizer=sgd(0.1, momentum=0.9))
    selection = Scripted([0, 1, 2], [2, 3], [0, 2], [1, 4], [4, 3, 0])
    parts: Any = {"selection": selection, "assignment": Dynamic(), "local": local}
    fleet, residuals = made_fleet(tmp_path, 5), MemoryStore()
    uplink = ErrorFeedback(HardThreshold(density=0.4), residuals, staleness=DropAfter(2))
    module = FedAvg(
        Mlp,
        aggregator=HolderMean(),
        uplink=uplink,
        fleet=fleet,
        server_optimizer=lambda parameters: Adam(parameters, lr=0.05),
        **parts,
    )
    federation = Federation(rules, given(Mlp, data, rules, fleet, **parts))
    rows, _, _ = compare(fit, module, data, federation, rounds=5)
    check_store(residuals, federation.residuals)
    assert [row["refused"] for row in rows] == [0, 1, 0, 0, 1]
    assert rows[0]["density"] < 0.4
    assert all(0 < row["density"] < 1 and "threshold" in row for row in rows[1:])
