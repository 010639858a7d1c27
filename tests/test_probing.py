"""Answers of clients before a cohort is selected: against a plain loop over their data, and their costs by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from hetfl import FedAvg, FederatedModule, HeteroFL
from hetfl.aggregators import QFedAvg
from hetfl.data import IID, FederatedDataModule, LabelShards
from hetfl.local import LocalTraining, Sequential, Workers, jobs
from hetfl.models import ConvNet
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection import Everyone, LossTimesSize, PowerOfChoice, Probe, Selection, SizeWeighted, Uniform
from hetfl.types import Task
from hetfl.wire import dense_size
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.local_cases import Problem, bench_of

Fit = Callable[..., Trainer]
BATCH = 6
CHANNELS = {"a": (8, 16), "b": (4, 8), "c": (2, 4)}


class Asking(Uniform):
    """Asks all clients for all losses before it draws, and records the answers of each round."""

    def __init__(self) -> None:
        super().__init__(2)
        self.whole: list[list[float]] = []
        self.parts: list[list[float]] = []

    def select(self, round: int, probe: Probe) -> list[int]:
        self.whole.append(probe.losses(probe.clients))
        self.parts.append(probe.losses(list(probe.clients)[::-1], BATCH)[::-1])
        return super().select(round, probe)


def plain_losses(
    module: FederatedModule, data: FederatedDataModule, round: int, weights: dict[str, Tensor], masked: bool
) -> tuple[list[float], list[float]]:
    """Return each client's mean loss over all samples, and over its drawn samples, sample by sample."""
    whole, parts = [], []
    for client in range(data.num_clients):
        width = {"a": 1.0, "b": 0.5, "c": 0.25}[module.assignment.levels(round)[client]]
        net = small_net(width=width, norm="none").double().train()
        for name, parameter in net.named_parameters():
            parameter.data = weights[name][tuple(slice(0, size) for size in parameter.shape)]
        samples, losses = data.client_data(client), []
        for position in range(len(samples)):
            with torch.no_grad():
                logits = net(data.transform.eval(samples.inputs[position : position + 1]).double())
            if masked:
                logits = torch.where(data.labels(client), logits, 0.0)
            losses.append(F.cross_entropy(logits, samples.targets[position : position + 1]).item())
        drawn = torch.randperm(len(samples), generator=generator(module.seed, "losses", round, client))[:BATCH].tolist()
        whole.append(sum(losses) / len(losses))
        parts.append(sum(losses[position] for position in drawn) / len(drawn))
    return whole, parts


@pytest.mark.parametrize("kind", [HeteroFL, FedAvg])
def test_losses_equal_a_plain_loop_for_every_executor(
    fit: Fit, kind: type[FederatedModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PLAIN_BATCH", 7)  # several batches per client; the last one is shorter
    data = small_data(partitioner=LabelShards(2), num_clients=5)
    answers: dict[str, Asking] = {}
    for name, executor in {"sequential": Sequential(), "workers": Workers(2)}.items():
        answers[name] = Asking()
        module = small_module(
            kind,
            net=lambda *, width=1.0: small_net(width=width, norm="none"),
            selection=answers[name],
            executor=executor,
        )
        weights = {name: p.detach().double().clone() for name, p in module.net.named_parameters()}
        trainer = fit(module, data, rounds=2, name=name, precision="64-true", limit_val_batches=0)
    asking = answers["sequential"]
    torch.set_default_dtype(torch.float64)  # as Lightning does in a run of precision 64-true
    try:
        whole, parts = plain_losses(module, data, 0, weights, masked=kind is HeteroFL)
    finally:
        torch.set_default_dtype(torch.float32)
    assert asking.whole[0] == pytest.approx(whole, rel=1e-12)
    assert asking.parts[0] == pytest.approx(parts, rel=1e-12)
    assert asking.whole[1] != pytest.approx(whole, rel=1e-3)  # losses of the current model, which has changed since
    assert trainer.global_step == 2
    for round in range(2):
        assert answers["workers"].whole[round] == pytest.approx(asking.whole[round], rel=1e-12)
        assert answers["workers"].parts[round] == pytest.approx(asking.parts[round], rel=1e-12)


def test_losses_use_the_rounds_model_in_training_mode(fit: Fit) -> None:
    """With static batch norm, a client's loss is that of one batch of all its data, as in its first step."""
    asking = Asking()
    module = small_module(selection=asking)
    data = small_data(partitioner=IID(), num_clients=4)
    levels = small_module().levels
    weights = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    fit(module, data, rounds=1, limit_val_batches=0)
    for client, level in enumerate(module.assignment.levels(0)):
        net, samples = levels.build(level).train(), data.client_data(client)
        for name, parameter in net.named_parameters():
            parameter.data = weights[name][tuple(slice(0, size) for size in parameter.shape)]
        loss = F.cross_entropy(net(data.transform.eval(samples.inputs)), samples.targets).item()
        assert asking.whole[0][client] == pytest.approx(loss, rel=1e-5)


def test_a_single_last_sample_joins_the_previous_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm refuses a single value per channel, which is what a deep net makes of one small image."""
    monkeypatch.setattr(jobs, "PLAIN_BATCH", 7)
    deep = partial(ConvNet, hidden=(4, 4, 4, 4), norm="batch")
    problem = Problem(LocalTraining(), net=deep, levels=small_levels(1.0), dtype=torch.float32)
    bench = bench_of(problem, sizes=(8,))
    result = jobs.losses(bench, Task(0, "a", 0, 0, 0.1), None)
    samples = bench.data.client_data(0)
    expected = F.cross_entropy(problem.net.train()(samples.inputs), samples.targets)
    assert result.report.loss == pytest.approx(expected.item(), rel=1e-5)


def forward(level: str) -> int:
    """Return the FLOPs of one 8 x 8 image: two convolutions, pooling between them, and the classifier."""
    first, second = CHANNELS[level]
    return 2 * 64 * 9 * first + 2 * 16 * 9 * first * second + 2 * second * 10


def training(level: str) -> int:
    """Return the FLOPs including the backward pass, which needs no gradient of the images."""
    return 3 * forward(level) - 2 * 64 * 9 * CHANNELS[level][0]


def entries(level: str) -> int:
    """Return the number of parameters: convolutions with biases, two norm layers, the classifier."""
    first, second = CHANNELS[level]
    return (9 * first + first) + 2 * first + (9 * first * second + second) + 2 * second + (10 * second + 10)


CASES: list[tuple[str, Selection, dict[str, Any], Callable[[int], int]]] = [
    # The clients that are asked, and the number of samples of n.
    ("candidates", PowerOfChoice(6, 3), {}, lambda n: n),
    ("candidates", PowerOfChoice(6, 3, "cpow", batch=16), {}, lambda n: min(n, 16)),
    ("nobody", PowerOfChoice(6, 3, "rpow"), {}, int),
    ("nobody", PowerOfChoice(3, 3), {}, int),
    ("everyone", LossTimesSize(3), {}, lambda n: n),
    ("cohort", SizeWeighted(3), {"aggregator": QFedAvg(1.0)}, lambda n: n),
    ("candidates", PowerOfChoice(6, 3), {"aggregator": QFedAvg(1.0)}, lambda n: n),  # answers are reused
]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Selection], list[list[int]]]:
    """Return a function that makes a policy record its cohorts."""

    def watch(policy: Selection) -> list[list[int]]:
        cohorts: list[list[int]] = []
        select = policy.select

        def spy(round: int, probe: Probe) -> list[int]:
            cohorts.append(select(round, probe))
            return cohorts[-1]

        monkeypatch.setattr(policy, "select", spy)
        return cohorts

    return watch


@pytest.mark.parametrize(("requested", "policy", "changes", "samples"), CASES)
def test_a_probe_costs_a_model_a_number_and_a_forward_pass(
    fit: Fit,
    requested: str,
    policy: Selection,
    changes: dict[str, Any],
    samples: Callable[[int], int],
    watched: Callable[[Selection], list[list[int]]],
) -> None:
    cohorts = watched(policy)
    module = small_module(selection=policy, **changes)
    data = small_data(partitioner=IID(), num_clients=9)  # so every client sends all that it trains
    trainer = fit(module, data, rounds=2, limit_val_batches=0)
    table = pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")
    flops = 0
    for round, cohort in enumerate(cohorts):
        levels, sizes = module.assignment.levels(round), data.sizes
        drawn = SizeWeighted(6)
        drawn.setup(Facts(sizes))
        candidates = drawn.select(round, Everyone(9))
        who = {"nobody": [], "cohort": cohort, "everyone": list(range(9)), "candidates": candidates}[requested]
        assert set(cohort) <= set(who) or not who
        down = sum(dense_size(entries(levels[k])) for k in set(who) | set(cohort))
        up = sum(dense_size(entries(levels[k])) for k in cohort) + len(who) * dense_size(1)
        flops += sum(training(levels[k]) * sizes[k] for k in cohort)
        flops += sum(forward(levels[k]) * samples(sizes[k]) for k in who)
        assert table["comm/down_bytes"][round] == down
        assert table["comm/down_probes_bytes"][round] == sum(dense_size(entries(levels[k])) for k in who)
        assert table["comm/down_training_bytes"][round] == down - table["comm/down_probes_bytes"][round]
        assert table["comm/up_bytes"][round] == up
        assert table["compute/flops_total"][round] == flops


def test_a_client_probed_twice_in_a_round_downloads_the_model_once(
    fit: Fit, watched: Callable[[Selection], list[list[int]]]
) -> None:
    policy = PowerOfChoice(6, 3, "cpow", batch=16)
    cohorts = watched(policy)
    module = small_module(selection=policy, aggregator=QFedAvg(1.0))
    data = small_data(partitioner=IID(), num_clients=9)
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    table = pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")
    levels, sizes, cohort = module.assignment.levels(0), data.sizes, cohorts[0]
    drawn = SizeWeighted(6)
    drawn.setup(Facts(sizes))
    candidates = drawn.select(0, Everyone(9))
    assert table["comm/down_bytes"][0] == sum(dense_size(entries(levels[k])) for k in candidates)
    answers = (len(candidates) + len(cohort)) * dense_size(1)
    assert table["comm/up_bytes"][0] == sum(dense_size(entries(levels[k])) for k in cohort) + answers
    flops = sum(16 * forward(levels[k]) for k in candidates)
    flops += sum(sizes[k] * (forward(levels[k]) + training(levels[k])) for k in cohort)
    assert table["compute/flops_total"][0] == flops
