"""Static batch-norm sums: the ones that are left out, and that honest clients' sums never are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from hetfl import FederatedModule
from hetfl.compression import ErrorFeedback, Identity
from hetfl.data import Dirichlet, FeatureNoise, PathologicalLabels
from hetfl.defence.outlying import FACTOR, FEWEST, refusals
from hetfl.federation import statistics as store
from hetfl.federation.clients import OwnClients
from hetfl.local import Result
from hetfl.local.jobs import statistics
from hetfl.selection import Uniform
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
LAYERS = {"one": 3, "two": 5}
BATCHES = [2, 4, 3, 2, 5]


def honest(seed: int = 0, batches: list[int] | None = None) -> list[Tensor]:
    """Return the sums of clients whose channel statistics differ by up to their size."""
    random = torch.Generator().manual_seed(seed)
    vectors = []
    for count in BATCHES if batches is None else batches:
        parts = []
        for channels in LAYERS.values():
            mean = torch.randn(channels, generator=random)
            variance = torch.rand(channels, generator=random) + 0.1
            parts += [count * mean, count * variance, torch.tensor([float(count)])]
        vectors.append(torch.cat(parts))
    return vectors


def test_plausible_sums_of_a_cohort_are_kept() -> None:
    for seed in range(50):
        assert refusals(LAYERS, honest(seed), BATCHES) == {}


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, math.nan, "for a mean but got nan in channel 0 of layer one"),
        (1, math.inf, "for a mean but got inf in channel 1 of layer one"),
        (2, -4e19, "for a mean but got -2e+19 in channel 2 of layer one"),
        (3, -1e-3, "for a variance but got -0.0005 in channel 0 of layer one"),
        (7 + 9, math.nan, "for a variance but got nan in channel 4 of layer two"),
        (6, math.nan, "Expected 2 batches but got nan of layer one"),
        (6, 1.0, "Expected 2 batches but got 1 of layer one"),
        (7 + 10, 4.0, "Expected 2 batches but got 4 of layer two"),
        (
            7 + 1,
            1e3,
            "a mean within 5 typical activations of the cohort's median but got 500 in channel 1 of layer two",
        ),
        (7 + 5, 1e6, "but got 707.107 in channel 0 of layer two"),
    ],
)
@pytest.mark.parametrize("client", [0, 3])
def test_one_wrong_number_excludes_a_clients_sums(client: int, place: int, value: float, reason: str) -> None:
    vectors = honest()
    vectors[client][place] = value
    refused = refusals(LAYERS, vectors, BATCHES)
    assert list(refused) == [client]
    assert reason in refused[client]


def test_exactly_the_two_false_clients_of_five_are_left_out() -> None:
    vectors = honest()
    vectors[1], vectors[4] = vectors[1] * 1, vectors[4] * 1
    vectors[1][:3] += 1e6
    vectors[4][:3] += 1e6
    assert sorted(refusals(LAYERS, vectors, BATCHES)) == [1, 4]


def test_two_different_clients_are_both_kept() -> None:
    assert FEWEST == 3
    vectors = honest(batches=[2, 2])
    vectors[0][:3] += 1e6
    assert refusals(LAYERS, vectors, [2, 2]) == {}


def test_a_layer_that_is_called_twice_may_count_twice_the_batches() -> None:
    vectors = [torch.cat([2 * vector[:7], vector[7:]]) for vector in honest()]
    assert refusals(LAYERS, vectors, BATCHES) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"partitioner": Dirichlet(0.1, min_samples=2)},
        {"partitioner": PathologicalLabels(1)},
        {"partitioner": PathologicalLabels(1), "client_transform": FeatureNoise(1.0)},
    ],
    ids=["Dirichlet 0.1", "one class each", "one class each, with noise"],
)
def test_honest_clients_are_never_left_out(fit: Fit, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """No client of a real run is left out at half of the factor, and totals have the bits of a sum in answer order."""
    monkeypatch.setattr("hetfl.defence.outlying.FACTOR", FACTOR / 2)
    cohorts: list[int] = []
    kept = store._kept

    def spy(net: Any, answers: list[Result], batch_size: int, ledger: Any) -> list[Result]:
        remaining = kept(net, answers, batch_size, ledger)
        assert remaining == answers
        cohorts.append(len(remaining))
        total = torch.zeros_like(answers[0].vector, dtype=torch.float64)
        for answer in answers:
            total += answer.vector.double()
        assert torch.equal(store._total(remaining), total)
        return remaining

    monkeypatch.setattr(store, "_kept", spy)
    module = small_module(
        selection=Uniform(10), levels=small_levels(1.0, 0.5), uplink=ErrorFeedback(Identity()), statistics_clients=None
    )
    trainer = fit(module, small_data(num_clients=20, **changes), rounds=3)
    assert max(cohorts) >= 10
    assert min(cohorts) >= FEWEST
    assert rows(trainer)["comm/refused"].sum() == 0


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]


class FalseSums(OwnClients):
    """Clients in the server's process; some of them report negative variances."""

    def __init__(self, module: FederatedModule, liars: set[int], first: int) -> None:
        assert isinstance(module.clients, OwnClients)
        super().__init__(module.executor, module.clients.side)
        self.liars, self.first = liars, first

    def run(self, job: Any, tasks: Any) -> Any:
        for result in super().run(job, tasks):
            if job is statistics and result.task.client in self.liars and result.task.round >= self.first:
                result.vector[8:16] *= -1
            yield result


@pytest.mark.filterwarnings("ignore:Round:UserWarning")
def test_a_simulation_also_leaves_false_sums_out(fit: Fit) -> None:
    module = small_module(levels=small_levels(1.0), statistics_clients=None)
    module.clients = FalseSums(module, {5}, 0)
    with pytest.warns(UserWarning, match="Round 1: statistics of client 5 at level a refused: .* for a variance"):
        trainer = fit(module, rounds=1)
    assert rows(trainer)["comm/refused"].tolist() == [1]


@pytest.mark.filterwarnings("ignore:Round:UserWarning")
def test_a_level_with_false_sums_only_keeps_old_statistics_or_has_no_accuracy(fit: Fit) -> None:
    """The accuracy is then neither that of chance, nor does the run end."""
    late, never = small_module(levels=small_levels(1.0)), small_module(levels=small_levels(1.0))
    late.clients = FalseSums(late, set(range(12)), 1)
    with pytest.warns(UserWarning, match="statistics for level a: the last known ones stand in"):
        table = rows(fit(late, rounds=2, name="late"))
    assert table["val/accuracy_by_level/a"].notna().all()
    never.clients = FalseSums(never, set(range(12)), 0)
    with pytest.warns(UserWarning, match="statistics for level a, so it cannot be evaluated"):
        table = rows(fit(never, rounds=2, name="never"))
    for name in (
        "val/accuracy_by_level/a",
        "val/accuracy",
        "val/loss",
        "local/accuracy_mean",
        "local/accuracy_worst10",
    ):
        assert table[name].isna().all(), name
    for one, two in zip(late.net.parameters(), never.net.parameters(), strict=True):
        assert torch.equal(one, two), "training does not depend on an evaluation"
