"""Rounds on a fleet: clock, deadlines, failures and waiting, against plain computations over every client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import LightningModule
from torch import Tensor

from hetfl import FederatedModule
from hetfl.accounting import Ledger
from hetfl.aggregators import HolderMean
from hetfl.compression import ErrorFeedback, Message, TopK
from hetfl.errors import RefusedUpdate
from hetfl.federation import FederatedCallback
from hetfl.fleet import CsvFleet, Device, SameDevice, Work
from hetfl.layout import Index
from hetfl.parts import RandomChannels
from hetfl.piece import Facts
from hetfl.schedule.timed_ledger import TimedLedger
from hetfl.seeding import generator
from hetfl.selection import Uniform
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.wire import dense_size
from tests.conftest import small_data, small_levels, small_module
from tests.fleet_cases import Ends, rows, varied

Fit = Callable[..., Trainer]


class Witness(FederatedCallback):
    """Records the clients with accepted updates in every round, and the residuals before and after."""

    def __init__(self) -> None:
        self.accepted: list[set[int]] = []
        self.residuals: list[list[dict[int, dict[str, Tensor]]]] = []

    def copies(self, module: FederatedModule) -> dict[int, dict[str, Tensor]]:
        store = module.uplink.residuals
        return {k: {name: block.clone() for name, block in store.load(k).items()} for k in store.clients()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.accepted.append(set())
        self.residuals.append([self.copies(pl_module)])  # type: ignore[arg-type]

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.accepted[-1].add(report.client)

    def on_train_batch_end(self, *args: Any) -> None:
        self.residuals[-1].append(self.copies(args[1]))


def watched(module: FederatedModule, monkeypatch: pytest.MonkeyPatch) -> tuple[Witness, dict[tuple[int, int], int]]:
    """Return a witness, and the lengths of the messages that clients prepare, by client and round."""
    lengths: dict[tuple[int, int], int] = {}
    prepare = module.uplink.prepare

    def spy(client: int, *args: Any, **kwargs: Any) -> Message:
        message = prepare(client, *args, **kwargs)
        lengths[client, message.round] = len(message.payload)
        return message

    monkeypatch.setattr(module.uplink, "prepare", spy)
    return Witness(), lengths


def test_the_clock_and_the_costs_equal_a_plain_computation(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = 8.0
    fleet = varied(failure_rate=0.2)
    module = small_module(
        fleet=fleet,
        deadline=deadline,
        uplink=ErrorFeedback(TopK(0.2)),
        selection=Uniform(8),
        levels=small_levels(1, 0.5),
    )
    module.ends = ends_of = Ends()  # type: ignore[assignment]
    late: dict[tuple[int, int], bool] = {}
    witness, lengths = watched(module, monkeypatch)
    data = small_data(val_fraction=0.1)
    table = rows(fit(module, data, rounds=6, limit_val_batches=0, callbacks=[witness]))
    clock = 0.0
    counts = {"dropped": 0, "failed": 0, "while sending": 0}
    for r in range(6):
        ends, down_total, up_total, flops_total, lost = [0.0], 0, 0, 0.0, {"dropped": 0, "failed": 0}
        accepted = set()
        for task in module.round.tasks(r, 0.0):
            k = task.client
            flops = module.levels.flops[task.level][1] * data.sizes[k]
            downlink, speed, uplink = map(float, fleet.rates(k, r))  # of this round
            down = dense_size(module.levels.sizes[task.level])
            t_down, t_compute = down / downlink, flops / speed
            up = lengths.get((k, r), 0)
            share = fleet.fails(k, r)
            end = t_down + t_compute * (1.0 if share is None else share)
            end += up / uplink if share is None else 0.0
            if end > deadline:
                lost["dropped"] += 1
                left = max(0.0, deadline - t_down)
                down_total += min(down, int(deadline * downlink))
                flops_total += min(flops * (1.0 if share is None else share), left * speed)
                sent = int(max(0.0, left - t_compute) * uplink) if share is None else 0
                up_total += min(up, sent)
                counts["while sending"] += sent > 0
                end, late[r, k] = deadline, True
            elif share is not None:
                lost["failed"] += 1
                late[r, k] = False
                down_total, flops_total = down_total + down, flops_total + flops * share
            else:
                accepted.add(k)
                down_total, flops_total, up_total = down_total + down, flops_total + flops, up_total + up
            ends.append(end)
        clock += max(ends)
        before = table["compute/flops_total"][r - 1] if r else 0.0
        assert witness.accepted[r] == accepted
        assert table["sim/round_seconds"][r] == pytest.approx(max(ends), rel=1e-9)
        assert table["sim/seconds_total"][r] == pytest.approx(clock, rel=1e-9)
        assert table["comm/down_bytes"][r] == down_total
        assert table["comm/up_bytes"][r] == pytest.approx(up_total, abs=len(ends))  # fractions of bytes
        assert table["compute/flops_total"][r] - before == pytest.approx(flops_total, rel=1e-9)
        assert (table["sim/dropped"][r], table["sim/failed"][r]) == (lost["dropped"], lost["failed"])
        counts["dropped"] += lost["dropped"]
        counts["failed"] += lost["failed"]
    assert min(counts.values()) > 0, counts
    assert ends_of.missed == late
    assert ends_of.accepted == {(r, k) for r, clients in enumerate(witness.accepted) for k in clients}
    assert table["sim/lost_total"].iloc[-1] == counts["dropped"] + counts["failed"]
    assert table["sim/reachable"].tolist() == [12] * 6


@pytest.mark.filterwarnings("ignore:.*Expected an even client")
def test_a_refused_update_is_missed_and_not_late(fit: Fit) -> None:
    class Picky(HolderMean):
        def update(self, update: Update, index: Index, report: Report) -> None:
            if report.client % 2:
                raise RefusedUpdate("Expected an even client but got an odd one")
            super().update(update, index, report)

    module = small_module(aggregator=Picky())
    module.ends = ends_of = Ends()  # type: ignore[assignment]
    fit(module, rounds=2, limit_val_batches=0)
    tasks = {(task.round, task.client) for r in range(2) for task in module.round.tasks(r, 0.0)}
    assert ends_of.missed == {(r, k): False for r, k in tasks if k % 2}
    assert ends_of.accepted == {(r, k) for r, k in tasks if k % 2 == 0}


def test_only_accepted_updates_change_residuals(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(
        fleet=varied(failure_rate=0.2, variation=1.0),
        deadline=8.0,
        uplink=ErrorFeedback(TopK(0.2)),
        selection=Uniform(8),
    )
    witness, lengths = watched(module, monkeypatch)
    fit(module, rounds=6, limit_val_batches=0, callbacks=[witness])
    kept = prepared = 0
    for r in range(6):
        before, after = witness.residuals[r]
        for task in module.round.tasks(r, 0.0):
            k = task.client
            if k in witness.accepted[r]:
                same = k in before and all(torch.equal(before[k][name], block) for name, block in after[k].items())
                assert not same
                continue
            assert (k in before) == (k in after)
            for name, block in before.get(k, {}).items():
                assert torch.equal(block, after[k][name])
            kept += k in before
            prepared += (k, r) in lengths
    assert kept > 3
    assert prepared > 0  # some dropped clients had compressed an update that did not arrive


@pytest.mark.filterwarnings("ignore:No update of a round arrived")
def test_a_download_that_the_deadline_cuts_is_not_complete(fit: Fit) -> None:
    told = {}
    for name, level, share in (("whole", "a", 1.1), ("cut", "b", 0.9)):
        fleet, levels = SameDevice(Device(downlink=1000.0)), small_levels(1, 0.5)
        module = small_module(parts=RandomChannels(), levels=levels, fleet=fleet, selection=Uniform(12))
        module.ledger.deadline = share * dense_size(module.levels.sizes[level]) / 1000
        fit(module, rounds=1, limit_val_batches=0)
        told[name] = set(module.downloads._positions)
    assert told["whole"]
    assert not told["cut"]


def test_phases_and_the_work_of_one_client_are_sequential() -> None:
    fleet = SameDevice(Device(throughput=10.0, downlink=5.0, uplink=2.0))
    fleet.setup(Facts([1] * 3, 0))
    ledger = Ledger(fleet, deadline=100.0)
    ledger.begin_round(0, 0.1)
    ledger.begin_phase("probes")
    ledger.charge(0, 0, Work(10, 20.0, 2))  # 2 + 2 + 1 s
    ledger.charge(1, 0, Work(0, 30.0, 0))
    ledger.charge(1, 0, Work(0, 30.0, 0))  # 6 s in all
    assert ledger.round.seconds == 6.0
    ledger.begin_phase("training")
    ledger.charge(0, 0, Work(0, 5.0, 0))
    assert ledger.now == 6.5
    ledger.lose(2, 0, Work(500, 1e4, 9))  # late: 100 s for the model, and nothing more
    assert (ledger.now, ledger.round.dropped) == (106.0, 1)
    assert (ledger.round.down_bytes, ledger.round.up_bytes, ledger.round.flops) == (510, 2, 85.0)
    costs = ledger.costs()
    purposes = [costs[f"comm/down_{purpose}_bytes"] for purpose in ("training", "statistics", "probes")]
    assert (purposes, costs["comm/down_bytes"]) == ([500, 0, 10], 510)
    ledger.begin_round(0, 0.1)
    ledger.lose(2, 1, Work(5, 10.0))
    assert (ledger.now, ledger.round.seconds, ledger.round.failed, ledger.total.dropped) == (108.0, 2.0, 1, 1)
    again = Ledger(fleet)
    again.load_state_dict(ledger.state_dict())
    assert (again.now, again.total, again.round.seconds) == (108.0, ledger.total, 0.0)
    again.begin_phase("statistics")  # of an evaluation before the next round
    again.charge(0, 1, Work(3, 2.0, 0))  # 0.6 + 0.2 s
    assert again.now == 108.8
    assert (again.total.down_statistics_bytes, again.total.down_bytes) == (3, 518)


def test_an_update_that_takes_exactly_the_deadline_is_in_time() -> None:
    fleet = SameDevice(Device(throughput=8.0, downlink=4.0, uplink=2.0))
    fleet.setup(Facts([1] * 1, 0))
    ledger = Ledger(fleet, deadline=7.5)
    assert ledger.in_time(0, 0, Work(8, 32.0, 3))  # 2 + 4 + 1.5 s
    assert not ledger.in_time(0, 0, Work(8, 32.0, 4))
    ledger.lose(0, 0, Work(8, 32.0, 3))  # in time, so it counts as a failure
    ledger.lose(0, 0, Work(8, 32.0, 4))
    assert (ledger.round.failed, ledger.round.dropped) == (1, 1)


def test_a_deadline_counts_all_tasks_of_a_client_unless_each_has_its_own_clock() -> None:
    fleet = SameDevice(Device(throughput=1.0, downlink=1.0, uplink=1.0))
    fleet.setup(Facts([1] * 2, 0))
    ledger, timed, work = Ledger(fleet, deadline=10.0), TimedLedger(fleet, deadline=10.0), Work(1, 3.0, 2)
    for each in (ledger, timed):
        each.begin_phase("training")
        each.charge(0, 0, work)
    assert timed.in_time(0, 0, work)
    assert not ledger.in_time(0, 0, work)
    assert ledger.in_time(1, 0, work)
    for _ in range(2):
        ledger.lose(0, 0, work)  # 4 s are left, and then none
    assert (ledger.round.dropped, ledger.round.failed, ledger.round.seconds) == (2, 0, 10.0)
    assert (ledger.round.down_bytes, ledger.round.flops, ledger.round.up_bytes) == (2, 6.0, 2)


def test_waiting_ignores_clients_that_have_left_or_not_joined(tmp_path: Path) -> None:
    """Against the moments at which each client becomes reachable, for five thousand seconds."""
    lines = ["client,throughput,downlink,uplink,availability,first_round,last_round"]
    lines += [f"{k},1,1,1,0.1,{5 * (k == 0)},{3 if k == 1 else 99}" for k in range(4)]
    (tmp_path / "fleet.csv").write_text("\n".join(lines))
    fleet, waits = CsvFleet(str(tmp_path / "fleet.csv"), period=100.0), 0
    fleet.setup(Facts([1] * 4, 0))
    phase = torch.rand(4, dtype=torch.float64, generator=generator(0, "fleet", "phase")).tolist()
    for round, present in ((0, (1, 2, 3)), (4, (2, 3)), (5, (0, 2, 3))):
        for now in range(0, 5000, 7):
            turns = [(now / 100 + phase[k]) % 1 for k in present]
            until = 0.0 if min(turns) < 0.1 else min(100 * (1 - turn) for turn in turns)
            assert fleet.next_reachable(round, float(now)) == pytest.approx(now + until, abs=1e-7)
            waits += until > 0
    assert waits > 1000
