"""Rounds in which clients do not wait for each other, against an independent replay and against synchronous rounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from hetfl import FedAvg, FederatedModule, Level
from hetfl.aggregators import HolderMean, ProductMean, QFedAvg
from hetfl.attacks import ALittleIsEnough
from hetfl.clustering import IFCA
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.federation.callback import FederatedCallback
from hetfl.fleet import Between, DiscountedUCB, Fixed
from hetfl.hooks import ClipDelta
from hetfl.layout import Index
from hetfl.local import FedDyn, LocalTraining, Workers
from hetfl.part import Part
from hetfl.parts import RandomMask
from hetfl.schedule import (
    Asynchronous,
    Buffered,
    Constant,
    Hinge,
    Polynomial,
    Schedule,
    SemiSynchronous,
    StalenessWeight,
    Synchronous,
)
from hetfl.schedule.age import counted, moved, staleness, weighted
from hetfl.selection import Exclusive, PowerOfChoice, Uniform
from hetfl.selection.base import Probe
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update
from tests.conftest import small_levels, small_module
from tests.fleet_cases import Timed, rows, varied

Fit = Callable[..., Trainer]


@dataclass(frozen=True)
class Event:
    """An accepted update, its report, and the global model before the server's step."""

    round: int
    report: Report
    update: Tensor
    index: Index


class Watched(FederatedCallback):
    """Keeps the global model at the beginning of every round, and all accepted updates."""

    def __init__(self) -> None:
        self.models: list[dict[str, Tensor]] = []
        self.events: list[Event] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, FederatedModule)
        self.models.append({name: t.detach().clone() for name, t in pl_module.models.tensors[0].items()})

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.events.append(Event(len(self.models) - 1, report, update.whole().clone(), index))


def table(trainer: Trainer, name: str = "timeline") -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / f"{name}.csv")


def polynomial(tau: float) -> float:
    return 1 / math.sqrt(1 + tau)


def replayed(watched: Watched, taken: list[int], mixing: float | None) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the models after each server step, and the mean staleness of each update, entry by entry in NumPy.

    Args:
        watched: a run whose parts have no masks.
        taken: the round in which the client of each event took the model.
        mixing: of FedAsync; None: FedBuff.
    """
    begun = [{name: t.numpy() for name, t in model.items()} for model in watched.models]
    changed: list[dict[str, Any]] = []  # per round, by name, which entries some update covers
    models, means = [], []
    for round, model in enumerate(begun):
        total = {name: np.zeros_like(value) for name, value in model.items()}
        count = {name: np.zeros(value.shape, int) for name, value in model.items()}
        for event, version in zip(watched.events, taken, strict=True):
            if event.round != round:
                continue
            values, ages = iter(event.update.tolist()), []
            for name, entry in event.index.items():
                held = [range(d.start, d.stop) if isinstance(d, slice) else d.tolist() for d in entry]
                for place in product(*held):
                    tau = sum(bool(changed[step][name][place]) for step in range(version, round))
                    u = next(values)
                    if mixing is not None:
                        u = mixing * (begun[version][name][place] + u - model[name][place])
                    total[name][place] += polynomial(tau) * u
                    count[name][place] += 1
                    ages.append(tau)
            means.append(float(np.mean(ages)))
        changed.append({name: each > 0 for name, each in count.items()})
        models.append({name: model[name] + total[name] / np.maximum(count[name], 1) for name in model})
    return models, means


def test_factors_of_stale_updates() -> None:
    """Oracle C-stale."""
    tau = torch.tensor([0.0, 1.0, 3.0, 8.0])
    assert Polynomial().factor(tau).tolist() == pytest.approx([1, 0.7071, 0.5, 1 / 3], abs=1e-4)
    assert Hinge().factor(torch.tensor([6.0, 7.0, 10.0])).tolist() == pytest.approx([1, 0.0909, 0.0244], abs=1e-4)
    assert Constant().factor(tau).tolist() == [1, 1, 1, 1]


def test_a_sparse_update_and_its_exact_block_are_weighted_entry_by_entry() -> None:
    factors = torch.tensor([1.0, 0.5, 0.25, 0.125])
    sparse = SparseUpdate(torch.tensor([8.0]), indices=torch.tensor([2]), length=3, exact=torch.tensor([16.0]))
    assert weighted(sparse, factors).whole().tolist() == [0, 0, 2, 2]
    assert moved(sparse, torch.ones(4), factors).whole().tolist() == [1, 0.5, 2.25, 17 / 8]
    assert weighted(DenseUpdate(torch.ones(4)), factors).to_dense().tolist() == factors.tolist()


def test_only_steps_that_changed_an_entry_count() -> None:
    whole = Part({"w": (slice(0, 3), slice(0, 2), slice(0, 4)), "b": (slice(0, 1),)})
    first = counted(None, {"w": torch.tensor([2.0, 1.0, 0.0]).view(3, 1, 1).expand(3, 2, 4)}, whole)
    second = counted(first, {"w": torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 2, 4)}, whole)
    part = Part({"w": (slice(0, 2), slice(0, 1), slice(0, 1)), "b": (slice(0, 1),)})
    assert staleness(second, None, part, whole).tolist() == [2, 1, 0]
    assert staleness(second, first, part, whole).tolist() == [1, 0, 0]


@pytest.mark.parametrize(("mixing", "expected"), [(0.6, 0.72), (None, 0.75)])
def test_two_updates_of_a_scalar(mixing: float | None, expected: float) -> None:
    """Oracle C-Async: θ = 0, a client's model 1 of staleness 0, then one of staleness 3."""
    theta = 0.0
    if mixing is None:
        both = [weighted(DenseUpdate(torch.ones(1)), Polynomial().factor(torch.tensor([tau]))) for tau in (0.0, 3.0)]
        theta = float(sum(update.to_dense() for update in both)) / 2
    else:
        for tau in (0.0, 3.0):
            factors = mixing * Polynomial().factor(torch.tensor([tau]))
            theta += float(moved(DenseUpdate(torch.ones(1)), torch.tensor([0.0 - theta]), factors).to_dense())
    assert theta == pytest.approx(expected)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("schedule", [Buffered(size=2), Asynchronous(mixing=0.6)], ids=["buffered", "asynchronous"])
def test_every_step_equals_a_replay_entry_by_entry(fit: Fit, schedule: Schedule) -> None:
    """Slow clients hold the widest level; entries that only they hold are less stale."""
    seconds = [7.3, 6.1, 5.2, 4.4, 1.0, 1.3, 1.7, 1.9, 1.1, 1.2, 0.7, 0.9]
    watched = Watched()
    module = small_module(
        schedule=schedule,
        assignment=Fixed(),
        fleet=Timed(seconds),
        selection=Uniform(6),
        aggregator=HolderMean(),
        uplink=ErrorFeedback(TopK(0.5)),
        net=Tiny,
    )
    trainer = fit(module, rounds=9, callbacks=[watched], limit_val_batches=0, precision="64-true")
    timeline = table(trainer)
    mixing = schedule.mixing if isinstance(schedule, Asynchronous) else None
    models, means = replayed(watched, timeline["taken"].tolist(), mixing)
    after = [*watched.models[1:], dict(module.models.tensors[0])]
    for expected, found in zip(models, after, strict=True):
        for name, value in found.items():
            np.testing.assert_allclose(value.detach().numpy(), expected[name], rtol=0, atol=1e-12)
    assert means == pytest.approx(timeline["staleness"].tolist())
    assert [event.report.entry_staleness for event in watched.events] == pytest.approx(means)
    assert [event.report.staleness for event in watched.events] == (timeline["round"] - timeline["taken"]).tolist()
    assert max(means) > 0
    assert any(mean < steps for mean, steps in zip(means, timeline["round"] - timeline["taken"], strict=True))
    columns = rows(trainer)
    by_round = timeline.groupby("round")
    assert columns["schedule/staleness_mean"].tolist() == pytest.approx(by_round["staleness"].mean().tolist())
    assert columns["schedule/staleness_max"].tolist() == by_round["largest_staleness"].max().tolist()


class Tiny(torch.nn.Module):
    """A net of few entries, so that a replay entry by entry is fast."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(16, round(4 * width))
        self.classifier = torch.nn.Linear(round(4 * width), 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.classifier(torch.relu(self.hidden(pooled)))  # type: ignore[no-any-return]


def test_equal_times_and_a_buffer_of_the_cohort_are_the_bits_of_synchronous_rounds(fit: Fit) -> None:
    runs = []
    for name, schedule in (("sync", Synchronous()), ("buffered", Buffered(size=4, concurrency=4))):
        module = small_module(schedule=schedule, fleet=Timed([2.0] * 12), uplink=ErrorFeedback(TopK(0.3)))
        trainer = fit(module, rounds=3, name=name)
        columns = [column for column in rows(trainer) if not str(column).startswith(("sim/", "schedule/"))]
        runs.append((rows(trainer)[columns], {n: t.clone() for n, t in module.models.tensors[0].items()}))
    (expected, weights), (found, tensors) = runs
    assert (expected["val/accuracy"] > 0).all()
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_exact=True)
    assert all(torch.equal(tensors[name], value) for name, value in weights.items())


def test_events_are_those_of_a_queue(fit: Fit) -> None:
    """Arrivals of one time are in one step, and free places are filled at every arrival."""
    seconds = [1.0, 1.0, 2.5, 4.0, 1.5, 3.0, 0.5, 2.0, 1.0, 2.5, 1.0, 0.5]
    module = small_module(schedule=Buffered(size=3, concurrency=5), fleet=Timed(seconds))
    timeline = table(fit(module, rounds=6, limit_val_batches=0))
    free, now, taken = 5, 0.0, defaultdict[int, set[int]](set)
    for _, row in timeline.iterrows():
        assert row["end"] == pytest.approx(row["start"] + seconds[row["client"]])
        assert row["end"] >= now
        now = row["end"]
        assert row["client"] not in taken[row["taken"]], "a client takes a version once"
        taken[row["taken"]].add(row["client"])
    changes = sorted([(end, -1) for end in timeline["end"]] + [(start, 1) for start in timeline["start"]])
    running = 0
    for _, change in changes:
        running += change
        assert 0 <= running <= free
    for round, of_round in timeline.groupby("round"):
        assert len(of_round) >= 3
        assert (of_round["end"] < of_round["end"].max()).sum() < 3, f"round {round} should have ended earlier"
        assert of_round["client"].is_unique
    for client, of_client in timeline.groupby("client"):
        assert (of_client["start"].to_numpy()[1:] >= of_client["end"].to_numpy()[:-1]).all(), client


def test_semi_synchronous_steps_have_fixed_times(fit: Fit) -> None:
    module = small_module(schedule=SemiSynchronous(1.0), fleet=Timed([2.5] * 6 + [3.5] * 6))
    watched = Watched()
    with pytest.warns(UserWarning, match="No update of a round arrived"):
        trainer = fit(module, rounds=7, callbacks=[watched], limit_val_batches=0)
    found = rows(trainer)
    assert found["sim/seconds_total"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert set(table(trainer)["round"]) <= {2, 3, 4, 5, 6}
    assert found["schedule/updates"].tolist()[:2] == [0, 0]
    for name, value in watched.models[0].items():
        assert torch.equal(value, watched.models[2][name])


SCHEDULES: Mapping[str, Callable[[], Schedule]] = {
    "buffered": lambda: Buffered(size=2, staleness=Hinge(1.0, 0.0)),
    "asynchronous": Asynchronous,
    "semi-synchronous": lambda: SemiSynchronous(3.0),
}


@pytest.mark.filterwarnings("ignore:No update of a round arrived")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumed_with_clients_under_way_has_the_same_bits(fit: Fit, tmp_path: Path, name: str) -> None:
    def module() -> FederatedModule:
        return small_module(
            schedule=SCHEDULES[name](),
            levels=small_levels(1.0, 0.5),
            fleet=varied(availability=Between(0.5, 0.9), failure_rate=0.1, period=20.0),
            uplink=ErrorFeedback(TopK(0.2)),
            personal=["classifier.bias"],
            hooks=[ClipDelta(1.0)],
        )

    whole, first = module(), module()
    expected = fit(whole, rounds=6, name="whole", check_val_every_n_epoch=3)
    saved = str(tmp_path / "middle.ckpt")
    fit(first, rounds=3, name="first", check_val_every_n_epoch=3).save_checkpoint(saved)
    state = torch.load(saved, weights_only=True)  # noqa: TID251
    state = state["hetfl"]["pieces"]["schedule"]
    assert any("payload" in flight for flight in state["flights"])
    second = module()
    found = fit(second, rounds=6, name="second", ckpt=saved, check_val_every_n_epoch=3)
    late, found_rows = (each.dropna(axis=1, how="all") for each in (rows(expected).iloc[3:], rows(found)))
    pd.testing.assert_frame_equal(found_rows, late.reset_index(drop=True), check_exact=True, check_like=True)
    timeline = table(expected)
    late = timeline[timeline["round"] >= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(table(found), late, check_exact=True, check_dtype=False)
    assert all(torch.equal(t, second.models.tensors[0][n]) for n, t in whole.models.tensors[0].items())


def test_lost_clients_take_their_time_and_the_clock_waits_for_reach(fit: Fit) -> None:
    """Clients fail, are away, miss a deadline that counts from their own start, join and leave."""
    fleet = varied(availability=0.3, failure_rate=0.3, period=30.0, first_round=Between(0, 3), stays=8)
    module = small_module(schedule=Buffered(size=2), fleet=fleet, deadline=20.0, uplink=ErrorFeedback(TopK(0.2)))
    trainer = fit(module, rounds=8, limit_val_batches=0)
    timeline, found = table(trainer), rows(trainer)
    lost = timeline[timeline["accepted"] == 0]
    assert found["sim/lost_total"].iloc[-1] == len(lost) > 0
    assert (timeline["end"] - timeline["start"]).max() <= 20.0 + 1e-9
    assert found["sim/waited"].sum() > 0
    assert found["sim/seconds_total"].tolist() == pytest.approx(timeline.groupby("round")["end"].max().tolist())
    for _, row in timeline.iterrows():
        assert row["client"] in fleet.reachable(row["taken"], row["start"])


class CountedExclusive(Exclusive):
    """Ends a run in which it is asked without end."""

    calls = 0

    def select(self, round: int, probe: Probe) -> list[int]:
        self.calls += 1
        assert self.calls < 500
        return super().select(round, probe)


@pytest.mark.parametrize("schedule", [Buffered(size=8), Asynchronous(), SemiSynchronous(20.0)])
def test_a_round_ends_once_the_selection_declines_all_free_clients(fit: Fit, schedule: Schedule) -> None:
    """Only the four clients of the largest level are chosen, each once in a round; the others come and go."""
    fleet = varied(availability=0.5, period=30.0)
    module = small_module(schedule=schedule, selection=CountedExclusive(4), fleet=fleet, assignment=Fixed())
    trainer = fit(module, rounds=8, limit_val_batches=0)
    timeline = table(trainer)
    assert set(timeline["level"]) == {"a"}
    assert len(rows(trainer)) == 8
    if isinstance(schedule, Buffered):  # without eight clients, a round ends when the last update has arrived
        assert timeline.groupby("round").size().tolist() == [4] * 8


def test_statistics_cost_bytes_and_no_time(fit: Fit) -> None:
    found = rows(fit(small_module(schedule=Buffered(size=4), fleet=Timed([2.0] * 12)), rounds=3))
    assert found["sim/seconds_total"].tolist() == [2, 4, 6]
    assert (found["comm/down_statistics_bytes"] > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clustering": IFCA(2)}, "Expected one global model with the schedule Buffered but got IFCA"),
        ({"local": LocalTraining(penalty=FedDyn(0.1))}, "a penalty without memories .* but got FedDyn"),
        ({"selection": PowerOfChoice(6, 4), "aggregator": HolderMean()}, "asks for no losses .* got PowerOfChoice"),
        ({"aggregator": QFedAvg(1.0)}, "aggregator that asks for no losses .* got QFedAvg"),
        ({"aggregator": ProductMean()}, "aggregator that takes stale updates .* got ProductMean"),
        ({"aggregator": ALittleIsEnough(ProductMean(), share=0.1)}, "stale updates .* got ALittleIsEnough"),
        ({"assignment": DiscountedUCB()}, "does not learn .* got DiscountedUCB"),
        ({"schedule": Buffered(size=13)}, "size of at most the number of clients, 12, but got 13"),
        ({"schedule": Asynchronous(concurrency=13)}, "concurrency of at most the number of clients, 12, but got 13"),
    ],
)
def test_what_needs_a_common_model_is_refused(fit: Fit, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(small_module(**{"schedule": Buffered(size=2), **changes}), rounds=1, limit_val_batches=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buffered(size=0), "size of at least 1 but got 0"),
        (lambda: Buffered(concurrency=0), "concurrency of at least 1 or null but got 0"),
        (lambda: SemiSynchronous(0.0), "period, in seconds, above 0 but got 0.0"),
        (lambda: Asynchronous(mixing=1.5), r"mixing in \(0, 1\] but got 1.5"),
        (lambda: Polynomial(-1.0), "exponent of at least 0 but got -1.0"),
        (lambda: Hinge(until=-1.0), "until of at least 0 but got -1.0"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_replay_of_cohorts_is_refused(fit: Fit) -> None:
    module = small_module(schedule=Buffered(size=2))
    fit(module, rounds=1, limit_val_batches=0)
    with pytest.raises(ConfigurationError, match="Expected the schedule Synchronous.* but got Buffered"):
        module.round.tasks(0, 0.0)


@pytest.mark.slow
def test_any_number_of_workers_has_the_same_bits(fit: Fit) -> None:
    runs = []
    for workers in (1, 2):
        module = small_module(schedule=Buffered(size=2), fleet=varied(), executor=Workers(workers))
        runs.append(rows(fit(module, rounds=5, name=f"workers{workers}")))
    pd.testing.assert_frame_equal(runs[0], runs[1], check_exact=True)


def test_masks_are_stale_entry_by_entry(fit: Fit) -> None:
    """Masks are drawn anew for every client, so that an update is less stale than its steps."""
    levels = {"a": Level("a"), "b": Level("b", density=0.2)}
    module = small_module(FedAvg, schedule=Buffered(size=1), levels=levels, parts=RandomMask(), fleet=varied())
    timeline = table(fit(module, rounds=8, limit_val_batches=0))
    steps = timeline["round"] - timeline["taken"]
    assert (timeline["staleness"] <= steps).all()
    assert (timeline["staleness"] < steps).any()


def test_staleness_functions_describe_themselves() -> None:
    functions: list[StalenessWeight] = [Constant(), Polynomial(), Hinge()]
    assert [each.describe() for each in functions] == [
        "Constant()",
        "Polynomial(exponent=0.5)",
        "Hinge(slope=10.0, until=6.0)",
    ]
