"""Rounds of nodes that do not wait for each other, on a real clock that the test moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from flwr.app import RecordDict

from hetfl import FederatedModule
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.compression.staleness import Decay
from hetfl.errors import ConfigurationError
from hetfl.flower.clients import FlowerClients
from hetfl.flower.letters import Failure, Letter
from hetfl.flower.messages import read_request
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.refusals import check_federation
from hetfl.schedule import Asynchronous, Buffered, Schedule, SemiSynchronous, Synchronous
from hetfl.schedule.clocks import RealClock
from hetfl.schedule.timed import Timed as Schedules
from tests.conftest import small_levels, small_module
from tests.fleet_cases import Timed, rows
from tests.flower_cases import Clock, FakePost, federated, make_node

Fit = Callable[..., Trainer]
SECONDS = [1.0, 0.4, 2.6, 4.0, 1.6, 3.0, 0.6, 2.0, 1.0, 2.4, 1.0, 0.4]
"""Seconds of each client's training, in multiples of the time between two looks for answers."""


class SlowPost(FakePost):
    """Delivers a client's answer to a training request after its seconds."""

    def __init__(self, nodes: Mapping[int, object], clock: Clock, seconds: list[float]) -> None:
        super().__init__(nodes)  # type: ignore[arg-type]
        self.clock, self.seconds, self.due = clock, seconds, dict[str, float]()
        self.lost: set[int] = set()

    def send(self, letters: Mapping[int, Letter], seconds: float) -> dict[int, str]:
        ids = super().send(letters, seconds)
        for node, id in ids.items():
            request = read_request(letters[node].content)
            wait = sum(self.seconds[order.task.client] for order in request.orders) if request.job == "train" else 0.0
            self.due[id] = self.clock.now + wait
            if request.job == "train" and {order.task.client for order in request.orders} & self.lost:
                del self.due[id]
        return ids

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        return super().collect([id for id in ids if self.due.get(id, 1e9) <= self.clock.now + 1e-6])


def module(schedule: Schedule) -> FederatedModule:
    return small_module(
        schedule=schedule,
        fleet=Timed(SECONDS),
        levels=small_levels(1.0, 0.5),
        uplink=ErrorFeedback(GammaFedHT(density=0.2)),  # its first updates report a norm, later ones do not
    )


def on_nodes(schedule: Schedule, folder: Path, **patience: float) -> tuple[FederatedModule, SlowPost]:
    """Return a module whose clients are on two nodes, and the post."""
    clock, made = Clock(), module(schedule)
    nodes = {
        number: make_node(clients, folder / f"{number}", lambda: module(copy.deepcopy(schedule)))
        for number, clients in ((1, range(6)), (2, range(6, 12)))
    }
    post = SlowPost(nodes, clock, SECONDS)
    made.clients = FlowerClients(made, Nodes(post, clock, clock.sleep), Patience(**patience))
    if isinstance(schedule, Schedules):
        schedule.real_clock = RealClock(clock)
    return made, post


def tensors(of: FederatedModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.models.tensors[0].items()}


@pytest.mark.parametrize("make", [lambda: Buffered(size=3, concurrency=5), Asynchronous])
def test_answers_that_arrive_as_on_simulated_devices_give_the_same_bits(
    fit: Fit, tmp_path: Path, make: Callable[[], Schedule]
) -> None:
    simulated = module(make())
    expected = fit(simulated, rounds=6, name="simulated", limit_val_batches=0)
    real, _ = on_nodes(make(), tmp_path)
    found = fit(real, rounds=6, name="real", limit_val_batches=0)
    assert all(torch.equal(tensors(real)[name], tensor) for name, tensor in tensors(simulated).items())
    timelines = [pd.read_csv(Path(str(trainer.log_dir)) / "timeline.csv") for trainer in (expected, found)]
    pd.testing.assert_frame_equal(timelines[1], timelines[0], rtol=1e-9)
    assert rows(expected)["schedule/staleness_max"].max() > 0
    columns = [column for column in rows(expected) if not str(column).startswith("residual/")]
    pd.testing.assert_frame_equal(rows(found)[columns], rows(expected)[columns], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:No update of a round arrived")
def test_semi_synchronous_rounds_end_at_their_times(fit: Fit, tmp_path: Path) -> None:
    real, _ = on_nodes(SemiSynchronous(1.3), tmp_path)
    found = rows(fit(real, rounds=5, limit_val_batches=0))
    for round, seconds in enumerate(found["sim/seconds_total"], start=1):
        assert 1.3 * round <= seconds <= 1.3 * round + 0.21
    assert found["schedule/updates"].sum() >= 5


@pytest.mark.filterwarnings("ignore:Round")
def test_a_client_without_an_answer_is_lost_at_its_deadline_and_others_go_on(fit: Fit, tmp_path: Path) -> None:
    real, post = on_nodes(Buffered(size=2, concurrency=4), tmp_path, deadline=5.0)
    post.lost = {3}
    trainer = fit(real, rounds=8, limit_val_batches=0)
    timeline = pd.read_csv(Path(str(trainer.log_dir)) / "timeline.csv")
    lost = timeline[timeline["client"] == 3]
    assert len(lost), "client 3 was never chosen"
    assert (lost["accepted"] == 0).all()
    assert lost["end"].iloc[0] == pytest.approx(lost["start"].iloc[0] + 5.0, abs=0.21)
    during = timeline[(timeline["end"] > lost["start"].iloc[0]) & (timeline["end"] < lost["end"].iloc[0])]
    assert during["accepted"].sum() >= 2, "the others waited for it"


@pytest.mark.filterwarnings("ignore:Round")
def test_a_resumed_run_counts_clients_under_way_as_lost(fit: Fit, tmp_path: Path) -> None:
    first, _ = on_nodes(Buffered(size=2, concurrency=4), tmp_path)
    fit(first, rounds=2, name="first", limit_val_batches=0).save_checkpoint(tmp_path / "two.ckpt")
    under_way = set(first.schedule._flights)  # type: ignore[attr-defined]
    assert under_way
    second, _ = on_nodes(Buffered(size=2, concurrency=4), tmp_path)
    trainer = fit(second, rounds=4, name="second", ckpt=str(tmp_path / "two.ckpt"), limit_val_batches=0)
    timeline = pd.read_csv(Path(str(trainer.log_dir)) / "timeline.csv")
    old = timeline[timeline["taken"] < 2]
    assert set(old["client"]) == under_way
    assert (old["accepted"] == 0).all()
    assert timeline["accepted"].sum() >= 4
    assert timeline["start"].min() < rows(trainer)["sim/seconds_total"].iloc[0], "the clock goes on"


def test_answers_at_once_and_a_buffer_of_the_cohort_are_the_bits_of_synchronous_rounds(
    fit: Fit, tmp_path: Path
) -> None:
    ends = []
    for schedule in (Synchronous(), Buffered(size=4, concurrency=4)):
        nodes = {1: make_node(range(12), tmp_path / type(schedule).__name__, partial(module, copy.deepcopy(schedule)))}
        made = federated(module(schedule), FakePost(nodes))
        fit(made, rounds=3, name=type(schedule).__name__, limit_val_batches=0)
        ends.append(tensors(made))
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())


@pytest.mark.parametrize(("schedule", "refused"), [(Asynchronous(), True), (Synchronous(), False)])
def test_residuals_that_age_are_refused_where_rounds_overlap(schedule: Schedule, refused: bool) -> None:
    federation = module(schedule)
    federation.uplink.staleness = Decay(0.5)
    if not refused:
        check_federation(federation)
        return
    with pytest.raises(
        ConfigurationError, match="staleness Keep on Flower with the schedule Asynchronous but got Decay"
    ):
        check_federation(federation)
