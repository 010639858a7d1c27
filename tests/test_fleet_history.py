"""Runs on a fleet: the same history for the same seed, predictions, waiting, and rounds that lose all updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from hetfl import ConfigurationError, FederatedModule
from hetfl.analysis import holders
from hetfl.compression import ErrorFeedback, TopK
from hetfl.fleet import Between, ByDevice, Device, RandomFleet, SameDevice, Work
from hetfl.local import LocalTraining, Workers
from hetfl.piece import Facts
from hetfl.selection import Probe, Selection, Uniform
from hetfl.wire import dense_size
from tests.conftest import small_data, small_levels, small_module
from tests.fleet_cases import rows, varied

Fit = Callable[..., Trainer]


class Quick(Selection):
    """Selects the clients with the shortest predicted rounds, and records the predictions."""

    def __init__(self, clients_per_round: int = 4) -> None:
        super().__init__(clients_per_round)
        self.predicted: list[dict[int, float]] = []

    def select(self, round: int, probe: Probe) -> list[int]:
        seconds = dict(zip(probe.clients, probe.seconds(probe.clients), strict=True))
        self.predicted.append(seconds)
        return sorted(seconds, key=lambda client: (seconds[client], client))[: self.clients_per_round]


def lively(**changes: Any) -> FederatedModule:
    """Return a module in which all events of a fleet happen."""
    settings: dict[str, Any] = {
        "fleet": varied(failure_rate=0.2, availability=Between(0.2, 0.8), first_round=Between(0, 1.5), period=30.0),
        "deadline": 9.0,
        "uplink": ErrorFeedback(TopK(0.2)),
        "selection": Quick(6),
        "levels": small_levels(1, 0.5, 0.25),
        "statistics_clients": 3,
    }
    return small_module(**{**settings, **changes})


@pytest.mark.filterwarnings("ignore:No client within reach can run level")
def test_the_same_seed_gives_the_same_history_with_workers_and_after_a_kill(fit: Fit, tmp_path: Path) -> None:
    options: dict[str, Any] = {"check_val_every_n_epoch": 3}
    whole = rows(fit(lively(), rounds=6, name="whole", **options))
    again = rows(fit(lively(executor=Workers(2)), rounds=6, name="again", **options))
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert whole["sim/reachable"].nunique() > 1
    assert whole["sim/failed"].sum() > 0
    other = rows(fit(lively(seed=1), rounds=2, name="other", **options))
    assert not other["sim/round_seconds"].equals(whole["sim/round_seconds"][:2])
    path = tmp_path / "three.ckpt"
    killed = fit(lively(), rounds=3, name="killed", **options)
    killed.save_checkpoint(path)
    resumed = rows(fit(lively(), rounds=6, name="resumed", ckpt=str(path), **options))
    pd.testing.assert_frame_equal(resumed, whole[3:].reset_index(drop=True), check_exact=True)
    for change, setting in (({"fleet": varied()}, "fleet"), ({"deadline": 8.0}, r"ledger \(Ledger\(deadline=9.0")):
        with pytest.raises(ConfigurationError, match=f"checkpoint's {setting}"):
            fit(lively(**change), rounds=6, name="changed", ckpt=str(path))


def test_predictions_assume_dense_updates_at_first_and_then_the_last_ratio(fit: Fit) -> None:
    selection, fleet = Quick(5), varied()
    module = small_module(
        selection=selection, fleet=fleet, uplink=ErrorFeedback(TopK(0.1)), levels=small_levels(1, 0.5)
    )
    data = small_data()
    table = rows(fit(module, data, rounds=3, limit_val_batches=0))
    dense = {level: 4 * size for level, size in module.levels.sizes.items()}
    share = 1.0
    for r in range(3):
        cohort = sorted(selection.predicted[r], key=lambda k: (selection.predicted[r][k], k))[:5]
        for k, predicted in selection.predicted[r].items():
            level = module.assignment.level(k, r)
            size = dense_size(module.levels.sizes[level])
            flops = module.levels.flops[level][1] * data.sizes[k]
            assert predicted == pytest.approx(float(fleet.seconds(k, r, Work(size, flops, size * share))), rel=1e-12)
        upload = table["comm/up_bytes"][r] * table["comm/up_ratio"][r]  # less than dense: only owned classes are sent
        assert upload <= sum(dense[module.assignment.level(k, r)] for k in cohort)
        share = 1 / table["comm/up_ratio"][r]
        assert 0.1 < share < 0.3


def test_a_round_that_loses_all_updates_changes_nothing_and_the_run_continues(fit: Fit) -> None:
    module = small_module(
        fleet=SameDevice(Device(failure_rate=1.0)),
        server_optimizer=lambda p: Adam(p, lr=0.1),
        local=LocalTraining(optimizer=lambda p: SGD(p, lr=0.1), scheduler=lambda o: StepLR(o, 1, 0.5)),
    )
    before = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
    with pytest.warns(UserWarning, match="No update of a round arrived: all were late, failed or refused"):
        trainer = fit(module, rounds=3)
    table = rows(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.net.state_dict().items())
    assert (module.models.version, trainer.global_step) == (3, 3)
    assert not trainer.optimizers[0].state
    assert table["sim/failed"].tolist() == [4, 4, 4]
    assert table["train/loss"].isna().all()
    assert table["lr"].tolist() == [0.1, 0.05, 0.025]
    assert (table["compute/flops_total"] > 0).all()
    assert table["val/accuracy"].notna().all()  # clients that gather statistics do not fail


def test_a_round_in_which_all_arrived_updates_diverged_ends_the_run(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(fleet=SameDevice(Device(failure_rate=0.5)), selection=Uniform(8))
    monkeypatch.setattr(module, "loss", lambda outputs, targets, ctx: outputs.sum() * float("nan"))
    with pytest.warns(UserWarning, match="refused"), pytest.raises(ConfigurationError, match="diverged"):
        fit(module, rounds=1)


@pytest.mark.filterwarnings("ignore:No client within reach can run level")
def test_the_clock_waits_for_a_client_and_reachable_clients_gather_statistics(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = RandomFleet(availability=0.05, period=1000.0)
    module = small_module(fleet=fleet, levels=small_levels(1, 0.5))
    gathering: list[set[int]] = []
    reachable: list[tuple[float, list[int]]] = []
    charge, wait = module.ledger.charge, module.ledger.wait

    def waiting(round: int) -> Any:
        clients_now = wait(round)
        reachable.append((module.ledger.now, clients_now.tolist()))
        gathering.append(set())
        return clients_now

    def charging(client: int, round: int, work: Work) -> None:
        gathering[-1].add(client)
        charge(client, round, work)

    monkeypatch.setattr(module.ledger, "wait", waiting)
    monkeypatch.setattr(module.ledger, "charge", charging)
    table = rows(fit(module, rounds=3))
    assert table["sim/waited"][0] > 0
    assert table["sim/round_seconds"][0] > table["sim/waited"][0]
    assert 1 <= table["sim/reachable"].min() <= table["sim/reachable"].max() < 4
    assert len(reachable) == 6  # before training and before statistics, in three rounds
    for clients, (_, clients_now) in zip(gathering, reachable, strict=True):
        assert clients
        assert clients <= set(clients_now)


@pytest.mark.filterwarnings("ignore:No client within reach can run level a. clients of level b gather")
def test_levels_by_device_meet_their_deadline(fit: Fit) -> None:
    module = lively(
        fleet=varied(variation=0.0), assignment=ByDevice(9.0), deadline=9.0, selection=Uniform(12), levels=None
    )
    table = rows(fit(module, rounds=1))
    slow = (module.forecast.table().min(axis=0) > 9.0).sum()
    assert table["sim/dropped"][0] <= slow < 4
    assert len(set(module.assignment.levels(0))) > 2


def test_cohorts_that_depend_on_the_clock_cannot_be_replayed(fit: Fit) -> None:
    module = small_module(fleet=RandomFleet(availability=0.5))
    fit(module, rounds=1, limit_val_batches=0)
    with pytest.raises(ConfigurationError, match="always within reach, to replay .* RandomFleet"):
        holders(module, 1)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_deadline_is_refused(deadline: float) -> None:
    with pytest.raises(ConfigurationError, match="deadline, in seconds, above 0 or null"):
        small_module(deadline=deadline)


def test_the_history_of_a_fleet_does_not_depend_on_queries() -> None:
    one, other = varied(availability=0.5, period=50.0), varied(availability=0.5, period=50.0)
    for fleet in (one, other):
        fleet.setup(Facts([1] * 9, 5))
    work = Work(100, 1e6, 100)
    forwards = [one.seconds(np.arange(9), r, work) for r in range(5)]
    backwards = [other.seconds(np.arange(9), r, work) for r in reversed(range(5))]
    assert all(np.array_equal(*pair) for pair in zip(forwards, reversed(backwards), strict=True))
