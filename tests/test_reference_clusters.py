"""Whole runs with several global models against the reference federation in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from hetfl import FedAvg
from hetfl.clustering import IFCA
from hetfl.compression import ErrorFeedback, TopK
from hetfl.fleet import Dynamic
from hetfl.local import FedDyn, LocalTraining
from hetfl.selection import Uniform
from hetfl.store import MemoryStore
from tests.reference.cases import Fit, Scripted, compare, conv_shapes, one_level, sgd
from tests.reference.federation import Federation
from tests.reference.given import given, made_data, made_fleet
from tests.reference.nets import conv_net
from tests.reference.rules import Rules
from tests.reference.run import check_store, read
from tests.reference.torch_nets import DrawnConvNet, Mlp

pytestmark = pytest.mark.usefixtures("double_precision")


def check_history(trainer: Trainer, federation: Federation) -> None:
    rows = read(f"{trainer.log_dir}/clusters.csv")
    changes = [(int(row["round"]), int(row["client"]), int(row["cluster"])) for row in rows]
    assert changes == federation.clusters.history


@pytest.mark.parametrize("ask_all", [False, True])
def test_ifca_with_shared_layers_and_feddyn_equals_the_reference(fit: Fit, tmp_path: Path, ask_all: bool) -> None:
    """Three kinds of clients for two models; a client's FedDyn memory moves to another cluster with it."""
    shapes = conv_shapes(3, classes=3)
    rules = Rules(
        nets={"a": conv_net(1.0, 1)},
        shapes={"a": shapes},
        samples=True,
        lr=0.5,
        feddyn=0.2,
        density=0.5,
        batch=5,
        server_momentum=0.4,
        clusters=2,
        shared=frozenset(name for name in shapes if name.startswith("blocks.0.conv.")),
        ask_all=ask_all,
    )
    data = made_data([13, 9, 17, 8, 21, 10, 12, 9, 15], (1, 4, 4), renamed=lambda client, y: (y + client) % 3)
    residuals, memories = MemoryStore(), MemoryStore()
    local = LocalTraining(epochs=2, batch_size=5, optimizer=sgd(0.5), penalty=FedDyn(0.2, memories))
    parts: Any = {"selection": Uniform(3), "assignment": Dynamic(), "local": local}
    fleet = made_fleet(tmp_path, 9)
    module = FedAvg(
        DrawnConvNet,
        uplink=ErrorFeedback(TopK(0.5), residuals),
        server_optimizer=sgd(1.0, momentum=0.4),
        clustering=IFCA(2, shared=["blocks.0.conv.*"], ask_all=ask_all),
        fleet=fleet,
        seed=1,
        **parts,
    )
    federation = Federation(rules, given(DrawnConvNet, data, rules, fleet, **parts, seed=1))
    rows, _, trainer = compare(fit, module, data, federation, rounds=5)
    check_store(residuals, federation.residuals)
    check_store(memories, federation.memories)
    check_history(trainer, federation)
    assert {round for round, *_ in federation.clusters.history} >= {0, 1}, "no client changes its cluster"
    assert rows[-1]["cluster_size:0"] != rows[-1]["cluster_size:1"]


@pytest.mark.filterwarnings("ignore:IFCA. all clients have chosen cluster 1")
def test_a_redrawn_model_that_no_client_chose_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    """Cluster 0 is trained, not chosen for three rounds, redrawn, and trained again with zero momentum."""
    rules = one_level(momentum=0.9, server_momentum=0.6, clusters=2, restarts=1, batch=5, samples=True)
    data = made_data([13, 9, 17, 8, 21, 10, 12, 9], renamed=lambda client, y: (y + (client > 4)) % 3)
    local = LocalTraining(epochs=2, batch_size=5, optimizer=sgd(0.1, momentum=0.9))
    selection = Scripted([0, 1, 5, 6], [0, 1, 2, 3], [1, 2, 3, 4], [0, 2, 3, 4], [0, 5, 6], [1, 5, 7])
    parts: Any = {"selection": selection, "assignment": Dynamic(), "local": local}
    fleet = made_fleet(tmp_path, 8)
    module = FedAvg(
        Mlp,
        server_optimizer=sgd(1.0, momentum=0.6),
        clustering=IFCA(2, restarts=1, jitter=None),
        fleet=fleet,
        seed=6,
        **parts,
    )
    federation = Federation(rules, given(Mlp, data, rules, fleet, **parts, seed=6))
    rows, _, trainer = compare(fit, module, data, federation, rounds=6)
    check_history(trainer, federation)
    assert federation.clusters.restarts == 1
    assert [row["cluster_empty"] for row in rows] == [0, 1, 1, 1, 0, 0]
