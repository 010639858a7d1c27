"""FedDyn with several global models: every cluster's memory is the mean of its members' memories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from hetfl import DepthFL, FederatedModule, HeteroFL, Level
from hetfl.clustering import IFCA, Clustering
from hetfl.compression import ErrorFeedback, TopK
from hetfl.hooks import Hooks
from hetfl.layout import Index
from hetfl.local import FedDyn, LocalTraining, Workers
from hetfl.models import MultiExitConvNet
from hetfl.piece import Facts
from hetfl.selection import PowerOfChoice, Uniform
from hetfl.store import DiskStore
from hetfl.types import SHARED, Report
from hetfl.updates import DenseUpdate
from tests.test_cluster_runs import Fit, grouped, module, splitting, values
from tests.test_penalty import SHAPES, index_of, positions

CLIENTS = 9


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_clusters_memory_is_the_mean_of_its_members_through_moves_and_splits(tmp_path: Path, on_disk: bool) -> None:
    """Against dense NumPy memories, over 30 rounds in which clients join and change clusters, and a cluster splits."""
    alpha, random = 0.07, np.random.default_rng(1)
    feddyn = FedDyn(alpha, DiskStore(str(tmp_path)) if on_disk else None)
    shared = frozenset({"bias"})
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    feddyn.setup(Facts([1] * CLIENTS, parameters=parameters, shared=shared))
    feddyn.begin()
    g = [{name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(CLIENTS)]
    assigned = np.full(CLIENTS, -1)
    for round in range(30):
        cohort = random.permutation(CLIENTS)[:4].tolist()
        assigned[cohort] = random.integers(0, 2 + round // 15, size=4)
        feddyn.regroup(assigned.tolist())
        for client in cohort:
            index: Index = index_of(random)
            parts = []
            for name in index:
                where = positions(index, name)
                sent = random.normal(size=g[client][name][where].shape)
                g[client][name][where] -= alpha * sent
                parts.append(sent.ravel())
            update = DenseUpdate(torch.from_numpy(np.concatenate(parts)))
            feddyn.observe(update, index, Report(client, "a", 1, 0.0, model=int(assigned[client])))
            feddyn.remember(client, round, index, update)
        known = int((assigned >= 0).sum())
        for cluster in (SHARED, *np.unique(assigned[assigned >= 0]).tolist()):
            names = [name for name in SHAPES if (name in shared) == (cluster == SHARED)]
            members = [k for k in range(CLIENTS) if assigned[k] == cluster or cluster == SHARED]
            counted = CLIENTS if cluster == SHARED else CLIENTS * len(members) / known
            step = {name: torch.from_numpy(random.normal(size=SHAPES[name])) for name in names}
            held = {name: torch.from_numpy(random.integers(0, 2, size=SHAPES[name])) for name in names}
            corrected = Hooks(feddyn).on_step(cluster, step, held)
            assert corrected.keys() == step.keys()
            for name in names:
                h = sum(g[k][name] for k in members) / counted
                expected = np.where(held[name] > 0, step[name].numpy() - h / alpha, step[name].numpy())
                np.testing.assert_allclose(corrected[name].numpy(), expected, atol=1e-12)


def test_after_a_split_each_cluster_converges_to_its_optimum() -> None:
    """Quadratic losses around four points: near the optimum only the members' memories still move a cluster's model."""
    alpha, points = 0.5, torch.tensor([[0.0, 1.0], [1.0, 2.0], [10.0, 5.0], [11.0, 8.0]], dtype=torch.float64)
    feddyn, models = FedDyn(alpha), [torch.zeros(2, dtype=torch.float64)] * 2
    index: Index = {"x": (slice(0, 2),)}
    feddyn.setup(Facts([1] * 4, parameters={"x": models[0]}))
    feddyn.begin()
    for round in range(120):
        clusters = [0, 0, 0, 0] if round < 60 else [0, 0, 1, 1]
        if round == 60:
            assert torch.allclose(models[0], points.mean(0), atol=1e-9)
            models = [models[0], models[0]]
        feddyn.regroup(clusters)
        steps: dict[int, list[torch.Tensor]] = {0: [], 1: []}
        for client, cluster in enumerate(clusters):
            memory = feddyn.memory(client, index, points[0])
            g = torch.zeros(2) if memory is None else memory
            # argmin of ½|x − a|² − <g, x> + α/2 |x − θ|²
            update = (points[client] + g + alpha * models[cluster]) / (1 + alpha) - models[cluster]
            steps[cluster].append(update)
            feddyn.observe(DenseUpdate(update), index, Report(client, "a", 1, 0.0, model=cluster))
            feddyn.remember(client, round, index, DenseUpdate(update))
        for cluster, steps_of_members in steps.items():
            if steps_of_members:
                mean = {"x": torch.stack(steps_of_members).mean(0)}
                models[cluster] = models[cluster] + Hooks(feddyn).on_step(cluster, mean, {"x": torch.ones(2)})["x"]
    assert torch.allclose(models[0], points[:2].mean(0), atol=1e-9)
    assert torch.allclose(models[1], points[2:].mean(0), atol=1e-9)


MAKE: dict[str, Callable[[], Clustering]] = {
    "ifca": lambda: IFCA(3),
    "shared": lambda: IFCA(3, shared=["*s.0.*"]),
    "clustered_fl": splitting,
}
NAMES = [pytest.param("ifca", marks=pytest.mark.slow), "shared", "clustered_fl"]
"""ifca is a slow test, since shared covers the same code."""


def remembering(clustering: Clustering, **changes: Any) -> FederatedModule:
    """Return HeteroFL with FedDyn and sparse uploads, in which six of eight clients take part."""
    local = LocalTraining(batch_size=20, optimizer=lambda p: SGD(p, lr=0.1), penalty=FedDyn(0.2))
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    arguments = {"local": local, "levels": levels, "uplink": ErrorFeedback(TopK(0.3)), "selection": Uniform(6)}
    return module(clustering, HeteroFL, **{**arguments, **changes})


def assert_memories_of_members(trained: FederatedModule) -> None:
    """Compare the server's memory of every cluster with the sum of the stored memories of its members."""
    penalty = trained.penalty
    assert isinstance(penalty, FedDyn)
    clients = trained.data.num_clients
    for cluster, sums in penalty.server.items():
        members = (penalty.where == cluster).nonzero().flatten().tolist() if cluster != SHARED else range(clients)
        for tensor, kept in sums.items():
            total = torch.zeros_like(kept)
            for client in members:
                if (block := penalty.memories.load(client).get(tensor)) is not None:
                    total[tuple(slice(size) for size in block.shape)] += block
            torch.testing.assert_close(kept, total / clients, rtol=0, atol=1e-6)
    assert sum(any(bool(kept.any()) for kept in sums.values()) for sums in penalty.server.values()) > 1
    assert sum(cluster != SHARED for cluster in penalty.server) > 1


@pytest.mark.filterwarnings("ignore:IFCA", "ignore:No client")
@pytest.mark.parametrize("name", NAMES)
def test_feddyn_with_clusters_has_the_same_bits_in_workers_and_after_a_resume(
    fit: Fit, tmp_path: Path, name: str
) -> None:
    path, whole, workers = tmp_path / "half.ckpt", remembering(MAKE[name]()), remembering(MAKE[name]())
    options: dict[str, Any] = {"limit_val_batches": 0}
    fit(whole, grouped(), rounds=4, name="whole", **options)
    workers.executor = Workers(2)
    fit(workers, grouped(), rounds=4, name="workers", **options)
    fit(remembering(MAKE[name]()), grouped(), rounds=2, name="half", **options).save_checkpoint(path)
    resumed = remembering(MAKE[name]())
    fit(resumed, grouped(), rounds=4, name="resumed", ckpt=str(path), **options)
    for other in (resumed, workers):
        for one, two in zip(values(whole), values(other), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert_memories_of_members(whole)


@pytest.mark.filterwarnings("ignore:IFCA", "ignore:No client")
@pytest.mark.parametrize("name", NAMES)
def test_a_clusters_memory_is_the_mean_of_its_members_with_depths(fit: Fit, name: str) -> None:
    levels = {"a": Level("a", depth=2), "b": Level("b", depth=1)}
    local = LocalTraining(batch_size=40, optimizer=lambda p: SGD(p, lr=0.1), penalty=FedDyn(0.1))
    changes = {"levels": levels, "local": local, "net": small_exits, "seed": 1}  # with seed 0 all choose one
    tested = module(MAKE[name](), DepthFL, **changes)
    fit(tested, grouped(), rounds=3, limit_val_batches=0)
    assert_memories_of_members(tested)


@pytest.mark.filterwarnings("ignore:No client")
@pytest.mark.parametrize("ask_all", [False, True])
def test_training_does_not_depend_on_how_often_the_models_are_evaluated(fit: Fit, ask_all: bool) -> None:
    """FedDyn counts the members of clusters, and the selection asks each client for the loss of its cluster's model."""
    trained = []
    for every in (1, 2, 0):
        tested = remembering(IFCA(2, ask_all=ask_all), selection=PowerOfChoice(5, 3))
        options = {"check_val_every_n_epoch": every} if every else {"limit_val_batches": 0}
        fit(tested, grouped(), rounds=4, name=f"every{every}", **options)
        trained.append(values(tested))
    for other in trained[1:]:
        for one, two in zip(trained[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def small_exits(*, depth: int = 2) -> torch.nn.Module:
    """Return a net of two stages with an exit each."""
    return MultiExitConvNet(hidden=(8, 16), depth=depth)
