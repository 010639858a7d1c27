"""Whole runs with every selection policy: resuming, DivFL's distances, and accuracies of single clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from torch.optim import SGD

from hetfl import DepthFL, FedAvg, FederatedModule, HeteroFL, Level
from hetfl.aggregators import QFedAvg
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import IID
from hetfl.federation.callback import FederatedCallback
from hetfl.federation.probing import RoundProbe
from hetfl.layout import Index
from hetfl.local import LocalTraining
from hetfl.models import MultiExitConvNet
from hetfl.objectives import Classification, ClientScores
from hetfl.selection import DivFL, PowerOfChoice
from hetfl.types import Report
from hetfl.updates import Update
from tests.conftest import small_data, small_module
from tests.test_selection import ALL

Fit = Callable[..., Trainer]


class Cohorts(FederatedCallback):
    """Records the clients with accepted updates by round, and the last update of each client scalar by scalar."""

    def __init__(self) -> None:
        self.rounds: dict[int, list[int]] = {}
        self.latest: dict[int, dict[tuple[str, tuple[int, ...]], float]] = {}

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.rounds.setdefault(trainer.current_epoch, []).append(report.client)
        scalars: dict[tuple[str, tuple[int, ...]], float] = {}
        values = (update.to_dense() / report.lr).tolist()
        for name, entry in index.items():
            axes = [range(p.start, p.stop) if isinstance(p, slice) else p.tolist() for p in entry]
            for where in itertools.product(*axes):
                scalars[name, where] = values[len(scalars)]
        self.latest[report.client] = scalars


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


VARIANTS = {"cpow", "loss_times_size_drawn", "divfl_stochastic"}
"""Policies that keep the same state as another policy."""


@pytest.mark.filterwarnings("ignore:No client within reach")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in ALL])
def test_a_resumed_run_selects_and_ends_like_an_uninterrupted_run(fit: Fit, tmp_path: Path, name: str) -> None:
    def module() -> FederatedModule:
        local = LocalTraining(batch_size=40, optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9))
        uplink = ErrorFeedback(TopK(0.2))
        return small_module(selection=ALL[name](), uplink=uplink, aggregator=QFedAvg(0.5), local=local)

    data, noted, path = small_data(num_clients=8), [Cohorts(), Cohorts(), Cohorts()], tmp_path / "three.ckpt"

    def run(module: FederatedModule, number: int, rounds: int, ckpt: str | None = None) -> Trainer:
        options = {"limit_val_batches": 0, "callbacks": [noted[number]]}
        return fit(module, data, rounds=rounds, name=str(number), ckpt=ckpt, **options)

    whole, second = module(), module()
    straight = run(whole, 0, 5)
    run(module(), 1, 3).save_checkpoint(path)
    again = run(second, 2, 5, str(path))
    assert {**noted[1].rounds, **noted[2].rounds} == noted[0].rounds
    assert sorted(noted[2].rounds) == [3, 4]
    for one, two in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(one, two)
    pd.testing.assert_frame_equal(rows(straight)[3:].reset_index(drop=True), rows(again), check_exact=True)


def test_divfl_measures_the_decoded_updates(fit: Fit) -> None:
    policy, noted = DivFL(3), Cohorts()
    module = small_module(selection=policy, uplink=ErrorFeedback(TopK(0.3)), local=LocalTraining(batch_size=40))
    fit(module, small_data(num_clients=8), rounds=4, limit_val_batches=0, callbacks=[noted])
    assert sorted(itertools.chain(*list(noted.rounds.values())[:2])) != list(range(8))
    assert set(itertools.chain(*noted.rounds.values())) == set(range(8))  # three rounds reach all clients
    for i, k in itertools.combinations(range(8), 2):
        one, two = noted.latest[i], noted.latest[k]
        common = sorted(one.keys() & two.keys())
        gaps = np.array([one[where] for where in common]) - np.array([two[where] for where in common])
        assert policy.distances_NN[i, k].item() == pytest.approx(float(np.sqrt(np.mean(gaps**2))), rel=1e-5)


def test_power_of_choice_selects_the_clients_with_the_largest_losses(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, noted = PowerOfChoice(8, 2), Cohorts()
    module = small_module(selection=policy)
    requests: list[list[float]] = []
    losses = RoundProbe.losses

    def noting(probe: RoundProbe, clients: list[int], samples: int | None = None) -> list[float]:
        answers = losses(probe, clients, samples)
        requests.append([answer for _, answer in sorted(zip(clients, answers, strict=True))])
        return answers

    monkeypatch.setattr(RoundProbe, "losses", noting)
    fit(module, small_data(num_clients=8), rounds=3, limit_val_batches=0, callbacks=[noted])
    for round, answers in enumerate(requests):
        assert noted.rounds[round] == sorted(range(8), key=lambda client: -answers[client])[:2]


@given(
    outcomes=st.lists(st.tuples(st.integers(-1, 11), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_accuracy_per_client_equals_a_loop(outcomes: list[tuple[int, int, int]], cut: int) -> None:
    objective = Classification()
    metric = ClientScores(12, objective)
    for part in (outcomes[:cut], outcomes[cut:]):
        if part:
            owner, target, guess = (torch.tensor(column) for column in zip(*part, strict=True))
            metric.update(objective.sums(torch.eye(3)[guess], target), owner)
    per_client = {
        client: [float(target == guess) for owner, target, guess in outcomes if owner == client] for client in range(12)
    }
    accuracies = sorted(sum(right) / len(right) for right in per_client.values() if right)
    expected: dict[str, float] = {}
    if accuracies:
        worst = accuracies[: max(1, len(accuracies) // 10)]
        expected = {
            "local/accuracy_mean": float(np.mean(accuracies)),
            "local/accuracy_by_samples": float(
                np.mean([target == guess for owner, target, guess in outcomes if owner >= 0])
            ),
            "local/accuracy_worst10": float(np.mean(worst)),
            "local/accuracy_std": float(np.std(accuracies)),
            "local/accuracy_var": float(np.var(accuracies)),
        }
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(expected, abs=1e-12)
    assert metric.compute() == {}  # and forgotten


def depthfl() -> FederatedModule:
    def net(*, width: float = 1.0, depth: int = 2) -> torch.nn.Module:
        return MultiExitConvNet(hidden=(4, 8), depth=depth, width=width)

    return small_module(DepthFL, net=net, levels={"a": Level("a", depth=2), "b": Level("b", depth=1)})


@pytest.mark.parametrize("make", [lambda: small_module(HeteroFL), lambda: small_module(FedAvg), depthfl])
def test_every_method_logs_accuracies_per_client(fit: Fit, make: Callable[[], FederatedModule]) -> None:
    table = rows(fit(make(), small_data(partitioner=IID()), rounds=2))
    assert table["local/accuracy_mean"].between(0, 1).all()
    assert (table["local/accuracy_worst10"] <= table["local/accuracy_mean"]).all()
    assert table["local/accuracy_std"].to_numpy() ** 2 == pytest.approx(table["local/accuracy_var"].to_numpy())
    columns = [name for name in table.columns if name.startswith("local/")]
    assert columns == [f"local/accuracy_{kind}" for kind in ("mean", "by_samples", "worst10", "std", "var")]
