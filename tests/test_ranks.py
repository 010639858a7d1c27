"""Rounds on several ranks: the data exchanged, the assignment of clients, and the same bits as in one process."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hetfl import DepthFL, FederatedModule, Level
from hetfl.aggregators import HolderMean, QFedAvg, ValueMean
from hetfl.clustering import IFCA
from hetfl.collective import Ranks
from hetfl.compression import Chain, ErrorFeedback, GammaFedHT, LogQuantizer, RandomK, TopK
from hetfl.compression.staleness import Decay
from hetfl.downlink import Downlink
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import OwnClients
from hetfl.federation.ranks import RankClients, _numbers, _report, shared_clients
from hetfl.fleet import DiscountedUCB
from hetfl.hooks import NormBound
from hetfl.local import Auto, FedDyn, LocalTraining, Sequential, Workers
from hetfl.models import MultiExitConvNet
from hetfl.packing import pack, unpack
from hetfl.parts import AlternatingFactors, DynamicMask, RandomMask, Rolling, ScoredChannels
from hetfl.parts.growth import ByServer
from hetfl.pruning.criteria import Movement
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.selection import ByValue, PowerOfChoice, Uniform
from hetfl.session.callbacks import LastCheckpoint
from hetfl.store import DiskStore
from hetfl.types import Report, Task
from hetfl.value import FeatureComposite, FeatureInformation, LabelInformation, ParameterUncertainty, Value
from tests.conftest import small_module
from tests.fleet_cases import varied
from tests.hook_cases import Momentum, Noise
from tests.lora_cases import lora_module
from tests.relative_cases import METHODS

Fit = Callable[..., Trainer]
RELATIVES = ("fjord", "nefl", "split_mix_robust", "ditto")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_the_busiest_rank_is_within_four_thirds_of_the_best_assignment(costs: list[int], count: int) -> None:
    executor = SimpleNamespace(bench=SimpleNamespace(cost=lambda task: costs[task.client]))
    inner = cast(OwnClients, SimpleNamespace(executor=executor, side=SimpleNamespace(uplink=None, task_parts=None)))
    clients = RankClients(inner, cast(Ranks, SimpleNamespace(rank=0, count=count)), [])
    shares = clients.shares([Task(k, "a", 0, 0) for k in range(len(costs))])

    def busiest(ranks: Any) -> int:
        return max(sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == r) for r in range(count))

    best = min(busiest(ranks) for ranks in product(range(count), repeat=len(costs)))
    # Largest first is within 4/3 − 1/(3 m) of the optimum (Graham, 1969).
    assert busiest(shares) <= (4 / 3 - 1 / (3 * count)) * best + 1e-9


def probing(**changes: Any) -> FederatedModule:
    """Return HeteroFL with probed losses, q-FedAvg, residuals in files, a threshold with a budget, and codes."""
    uplink = ErrorFeedback(Chain(GammaFedHT(budget=0.1), LogQuantizer(4)), DiskStore())
    selection = PowerOfChoice(candidates=6, clients_per_round=4)
    return small_module(selection=selection, aggregator=QFedAvg(0.5), uplink=uplink, parts=Rolling(), **changes)


def dynamic(**changes: Any) -> FederatedModule:
    """Return DepthFL with FedDyn's memories, ageing residuals and a hook at every place."""
    return small_module(
        DepthFL,
        net=lambda width=1.0, depth=2: MultiExitConvNet(hidden=(8, 16), width=width, depth=depth),
        levels={"a": Level("a", depth=2), "b": Level("b", depth=1)},
        local=LocalTraining(epochs=1, batch_size=10, penalty=FedDyn(0.1)),
        uplink=ErrorFeedback(TopK(0.1), staleness=Decay(0.5)),
        hooks=[Noise(0.02), NormBound(0.2, action="clip"), Momentum()],
        **changes,
    )


def clustered(**changes: Any) -> FederatedModule:
    """Return a module with two global models, codes on the way down, and a random compressor without residuals."""
    uplink = ErrorFeedback(RandomK(0.3), enabled=False)
    return small_module(clustering=IFCA(2), uplink=uplink, downlink=Downlink(rotate=True), **changes)


def sparse(**changes: Any) -> FederatedModule:
    """Return a module with masks per client, residuals in global coordinates, and personal biases."""
    levels = {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}
    return small_module(
        levels=levels, parts=RandomMask(), uplink=ErrorFeedback(TopK(0.2, by="weight")), personal=["*bias"], **changes
    )


def scored(**changes: Any) -> FederatedModule:
    """Return a module with the channels that moved most, a mean over the cohort, and residuals of other channels."""
    parts, mean = ScoredChannels(Movement("round")), HolderMean("cohort")
    return small_module(parts=parts, aggregator=mean, uplink=ErrorFeedback(TopK(0.2)), **changes)


def exchanging(**changes: Any) -> FederatedModule:
    """Return a module whose server exchanges entries of a mask in every round, by the clients' gradients."""
    levels = {"a": Level("a"), "b": Level("b", density=0.3)}
    parts = DynamicMask(ByServer(), every=1)
    return small_module(levels=levels, parts=parts, uplink=ErrorFeedback(TopK(0.2)), **changes)


def learning(**changes: Any) -> FederatedModule:
    """Return a module with a bandit, and clients that are late or fail."""
    assignment, fleet = DiscountedUCB(), varied(failure_rate=0.2)
    return small_module(assignment=assignment, fleet=fleet, deadline=8.0, selection=Uniform(8), **changes)


def valued(**changes: Any) -> FederatedModule:
    """Return a module with measures that ask clients, and means and cohorts by values."""
    values: list[Value] = [FeatureComposite(4), ParameterUncertainty(), FeatureInformation(4)]
    return small_module(measures=values, aggregator=ValueMean(), selection=ByValue(4, LabelInformation()), **changes)


def adapters(**changes: Any) -> FederatedModule:
    """Return a module with adapters of several ranks beside a frozen net, whose clients train A and B in turn."""
    module: FederatedModule = lora_module(
        parts=AlternatingFactors(), uplink=ErrorFeedback(GammaFedHT(density=0.2)), **changes
    )
    return module


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def run(fit: Fit, tmp_path: Path, module: FederatedModule, name: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Return a run's last checkpoint, which rank zero wrote before it ended, and its metrics."""
    callbacks = [LastCheckpoint(1.0)]
    fit(module, name=name, callbacks=callbacks, plugins=[SafeCheckpointIO()], enable_checkpointing=True, **options)
    folder = next((tmp_path / name).iterdir())
    kept = SafeCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")
    parts = {part: kept[part] for part in ("state_dict", "optimizer_states", "hetfl")}
    tables = [folder / name for name in ("metrics.csv", "values.csv")]
    return parts, "".join(table.read_text() for table in tables if table.is_file())


def assert_same(one: tuple[dict[str, Any], str], other: tuple[dict[str, Any], str]) -> None:
    for part, state in one[0].items():
        assert same(state, other[0][part]), part
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("make", "executor", "ranks"),
    [
        (probing, Sequential, 2),
        (dynamic, lambda: Workers(2), 2),
        (clustered, Sequential, 3),
        (sparse, lambda: Workers(2), 2),
        (scored, Sequential, 2),
        (exchanging, Sequential, 2),
        (learning, Sequential, 2),
        (valued, lambda: Workers(2), 2),
        (adapters, lambda: Workers(2), 2),
        *((METHODS[name], Sequential, 2) for name in RELATIVES),
    ],
    ids=[
        *("probing", "dynamic", "clustered", "sparse", "scored", "exchanging", "learning", "valued", "adapters"),
        *RELATIVES,
    ],
)
def test_ranks_give_the_same_bits_as_one_process(
    fit: Fit,
    tmp_path: Path,
    make: Callable[..., FederatedModule],
    executor: Callable[[], Any],
    ranks: int,
) -> None:
    one = run(fit, tmp_path, make(executor=executor()), "one")
    several = run(fit, tmp_path, make(executor=executor()), "several", strategy="ddp_fork", devices=ranks)
    assert_same(one, several)


def test_a_run_resumes_with_another_number_of_ranks(fit: Fit, tmp_path: Path) -> None:
    whole = run(fit, tmp_path, dynamic(), "whole", rounds=4)
    run(fit, tmp_path, dynamic(), "two", rounds=1)
    path = next(tmp_path.glob("two/*/checkpoints/last.ckpt"))
    run(fit, tmp_path, dynamic(), "three", rounds=3, ckpt=str(path), strategy="ddp_fork", devices=2)
    path = next(tmp_path.glob("three/*/checkpoints/last.ckpt"))
    assert same(whole[0], run(fit, tmp_path, dynamic(), "four", rounds=4, ckpt=str(path))[0])


class Failing(Sequential):
    """Fails on the rank that has client ``client``."""

    def __init__(self, client: int) -> None:
        self.client = client

    def run(self, job: Any, tasks: Any, memory: Any = None) -> Any:
        if any(task.client == self.client for task in tasks):
            raise OSError("no such sensor")
        return super().run(job, tasks, memory)


def test_a_failing_rank_ends_all_ranks(fit: Fit) -> None:
    with pytest.raises(Exception, match="no such sensor"):
        fit(small_module(executor=Failing(5)), rounds=20, strategy="ddp_fork", devices=2)


class Interrupted(Callback):
    """Sends a signal to one rank in a round; every rank writes the signal that stopped it into a file.

    A rank that ends in another way writes no file.
    """

    def __init__(self, folder: Path, rank: int, round: int) -> None:
        self.folder, self.rank, self.round = folder, rank, round

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if (trainer.global_rank, trainer.current_epoch) == (self.rank, self.round):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        (stop,) = (each for each in trainer.callbacks if isinstance(each, StopAtRoundEnd))  # type: ignore[attr-defined]
        (self.folder / str(trainer.global_rank)).write_text(str(stop.signal))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_rank_stops_all_ranks_at_the_end_of_its_round(fit: Fit, tmp_path: Path, rank: int) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    stop, interrupted = StopAtRoundEnd(), Interrupted(signals, rank, round=1)
    fit(small_module(), rounds=20, callbacks=[stop, interrupted], strategy="ddp_fork", devices=2)
    assert {file.name: file.read_text() for file in signals.iterdir()} == {"0": "15", "1": "15"}
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert pd.read_csv(metrics)["step"].tolist() == [0, 1]


def test_auto_executor_is_refused_on_several_ranks(fit: Fit) -> None:
    with pytest.raises(Exception, match="an executor by name for several devices but got Auto"):
        fit(small_module(executor=Auto()), rounds=1, strategy="ddp_fork", devices=2)


def test_numbers_of_a_diverged_client_reach_all_ranks() -> None:
    task = Task(3, "a", 1, 1, 0.05)
    extras = {"tail_change": math.nan, "norm": math.inf}
    report = Report(3, "a", 7, math.nan, lr=0.05, passes=14, steps=2, extras=extras)
    assert str(_report(task, unpack(pack(_numbers(report))))) == str(report)


def test_what_ranks_cannot_do_is_refused(tmp_path: Path) -> None:
    two: Any = SimpleNamespace(world_size=2, strategy=DDPStrategy())
    own = cast(OwnClients, small_module().clients)
    with pytest.raises(ConfigurationError, match="Expected stores without a folder for 2 devices, .* but got .*kept"):
        shared_clients(own, two, [FedDyn(0.1, DiskStore(str(tmp_path / "kept")))])
    clients = RankClients(own, cast(Ranks, SimpleNamespace(rank=0, count=2)), [FedDyn(0.1, DiskStore())])
    with pytest.raises(ConfigurationError, match="got one of a run on Flower"):
        clients.load_state_dict({"nodes": 3})
