"""Silent, late, new and lost nodes; clients that have lost their state; a restarted server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from lightning import Trainer

from hetfl import FederatedModule, Level
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.flower.clients import FlowerClients
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.local import FedDyn, LocalTraining
from hetfl.parts import RankedMask
from hetfl.pruning.criteria import Gradient
from hetfl.selection import Uniform
from tests.conftest import small_module
from tests.fleet_cases import Ends
from tests.flower_cases import Clock, FakePost, federated, make_node, warned

Fit = Callable[..., Trainer]
SPLIT = {11: range(5), 12: range(5, 8), 13: range(8, 12)}
SILENT = 12
DEADLINE = 30.0


def make(**changes: Any) -> FederatedModule:
    return small_module(**{"uplink": ErrorFeedback(TopK(0.2)), "selection": Uniform(12), **changes})


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]


def fake_post(folder: Path, build: Callable[[], FederatedModule] = make) -> FakePost:
    return FakePost({node: make_node(of, folder / str(node), build) for node, of in SPLIT.items()})


def timed(module: FederatedModule, post: FakePost, **patience: float) -> Clock:
    clock = Clock()
    module.clients = FlowerClients(module, Nodes(post, clock, clock.sleep), Patience(**patience))
    return clock


def rounds_asked(post: FakePost, node: int) -> list[int]:
    """Return the rounds in which a node was asked to train."""
    letters = [letter for to, letter in post.sent if to == node and letter["request"]["job"] == "train"]
    return [int(letter["task.0"]["round"]) for letter in letters]  # type: ignore[arg-type]


def test_a_silent_node_delays_the_run_by_one_deadline(fit: Fit, tmp_path: Path) -> None:
    def build() -> FederatedModule:
        module = make()
        module.ends = Ends()  # type: ignore[assignment]
        return module

    post = fake_post(tmp_path, build)
    post.tamper = lambda node, answer: None if node == SILENT and "report.0" in answer else answer
    module = build()
    clock = timed(module, post, deadline=DEADLINE)
    with warned("no update of client 5: no answer within 30 s"):
        trainer = fit(module, rounds=4, limit_val_batches=0)
    assert DEADLINE <= clock.now < DEADLINE + 1
    assert rounds_asked(post, SILENT) == [0]
    assert rounds_asked(post, 11) == [0, 1, 2, 3]
    assert rows(trainer)["sim/failed"].tolist() == [3] * 4
    assert rows(trainer)["comm/refused"].tolist() == [0] * 4
    missed = module.ends.missed  # type: ignore[union-attr]
    assert missed == {(round, client): round == 0 for round in range(4) for client in SPLIT[SILENT]}


def test_a_late_answer_is_ignored_and_its_node_is_used_again(fit: Fit, tmp_path: Path) -> None:
    """A late answer changes neither the model nor the state that its clients continue from."""
    post, late = fake_post(tmp_path), {}

    def tamper(node: int, answer: Any) -> Any:
        if node == SILENT and "report.0" in answer and len(rounds_asked(post, SILENT)) == 1:
            late["answer"], late["id"] = answer, f"message {len(post.sent) - 1}"
            return None
        if node == 13 and "report.0" in answer and len(rounds_asked(post, 13)) == 2:
            post.deliver(late["id"], late["answer"])
        return answer

    post.tamper = tamper
    module = make()
    timed(module, post, deadline=DEADLINE)
    with warned("no update of client 5"):
        trainer = fit(module, rounds=4, limit_val_batches=0)
    assert rounds_asked(post, SILENT) == [0, 2, 3]
    assert rows(trainer)["sim/failed"].tolist() == [3, 3, 0, 0]
    assert [letter["task.0"]["state"] for to, letter in post.sent if to == SILENT and "task.0" in letter][:2] == [
        "",
        "",
    ]


def test_enough_answers_end_a_round(fit: Fit, tmp_path: Path) -> None:
    post = fake_post(tmp_path)
    post.tamper = lambda node, answer: None if node == SILENT and "report.0" in answer else answer
    module = make()
    clock = timed(module, post, deadline=DEADLINE, enough=0.7)
    with warned("enough others had answered"):
        fit(module, rounds=2, limit_val_batches=0)
    assert clock.now < 1


def test_a_run_without_nodes_logs_that_it_waits(fit: Fit, tmp_path: Path) -> None:
    module = make()
    clock = timed(module, FakePost({}), start=60.0)
    with pytest.raises(ConfigurationError, match="a node that can take part within 60 s but none came"):
        fit(module, rounds=1)
    assert 60 <= clock.now < 61


def test_a_node_with_other_settings_cannot_take_part(fit: Fit, tmp_path: Path) -> None:
    post = fake_post(tmp_path)
    post.nodes[SILENT] = make_node(SPLIT[SILENT], tmp_path, lambda: make(uplink=ErrorFeedback(TopK(0.3))))
    module = make()
    timed(module, post, start=1.0)
    message = r"refused: node .*: clients 5-7 cannot take part: Expected the server's uplink .*TopK\(density=0.2, .*0.3"
    with warned(message):
        fit(module, rounds=1, limit_val_batches=0)


def test_a_refused_node_can_return_with_right_settings(fit: Fit, tmp_path: Path) -> None:
    """The same node is restarted with the right settings; before that it is reported once."""
    post, clock = fake_post(tmp_path), Clock()
    mended = post.nodes[SILENT]
    post.nodes[SILENT] = make_node(SPLIT[SILENT], tmp_path, lambda: make(uplink=ErrorFeedback(TopK(0.3))))

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 25:
            post.nodes[SILENT] = mended

    module = make()
    module.clients = FlowerClients(module, Nodes(post, clock, sleep), Patience())
    with pytest.warns(UserWarning, match="clients 5-7 cannot take part") as caught:
        fit(module, rounds=1, limit_val_batches=0)
    assert sum("cannot take part" in str(each.message) for each in caught) == 1
    assert 25 < clock.now < 40
    assert rounds_asked(post, SILENT) == [0]


def test_a_later_node_takes_over_the_clients(fit: Fit, tmp_path: Path) -> None:
    """A node dies; its clients return as another node with their states."""
    post = fake_post(tmp_path)
    keeper = post.nodes[SILENT]

    def tamper(node: int, answer: Any) -> Any:
        if all(len(rounds_asked(post, each)) == 2 for each in SPLIT):
            post.nodes.pop(SILENT, None)
        if all(len(rounds_asked(post, each)) == 3 for each in (11, 13)):
            post.nodes[99] = keeper
        return answer

    post.tamper = tamper
    module = make()
    timed(module, post, deadline=DEADLINE)
    with warned("no node that serves it is there"):
        trainer = fit(module, rounds=6, limit_val_batches=0)
    failed = rows(trainer)["sim/failed"].tolist()
    assert failed[:3] == [0, 0, 3]
    assert failed[-1] == 0
    assert rounds_asked(post, 99)


@pytest.mark.parametrize(
    ("penalty", "expected_state"),
    [
        (False, "no state at all"),
        (True, "states up to round 0"),
        pytest.param(True, "no state at all", marks=pytest.mark.slow),
        pytest.param(False, "states up to round 0", marks=pytest.mark.slow),
    ],
)
def test_a_lost_or_older_disk_is_reported_and_its_clients_start_without_state(
    fit: Fit, tmp_path: Path, penalty: bool, expected_state: str
) -> None:
    """The disk is empty, or holds the states of a round before."""

    def build() -> FederatedModule:
        return make(local=LocalTraining(1, 10, penalty=FedDyn(0.1) if penalty else None))

    post = fake_post(tmp_path, build)

    def tamper(node: int, answer: Any) -> Any:
        count = len(rounds_asked(post, SILENT)) if node == SILENT and "report.0" in answer else 0
        if count == 1 and "round 0" in expected_state:
            shutil.copytree(tmp_path / str(SILENT), tmp_path / "copy")
        if count == 2:
            shutil.rmtree(tmp_path / str(SILENT))
            if "round 0" in expected_state:
                shutil.copytree(tmp_path / "copy", tmp_path / str(SILENT))
        return answer

    post.tamper = tamper
    module = build()
    timed(module, post)
    with warned(f"client 5: Expected state [0-9a-f]{{32}} of client 5 but got {expected_state}: it begins anew"):
        trainer = fit(module, rounds=5, limit_val_batches=0)
    assert rows(trainer)["sim/failed"].tolist() == [0, 0, 3, 0, 0]
    states = [letter["task.0"]["state"] for to, letter in post.sent if to == SILENT and "task.0" in letter]
    assert [bool(state) for state in states] == [False, True, True, False, True]


@pytest.mark.parametrize("killed", [pytest.param("after a checkpoint", marks=pytest.mark.slow), "in a round"])
def test_a_restarted_server_ends_with_the_same_bits(fit: Fit, tmp_path: Path, killed: str) -> None:
    """As a new run with new node ids and the clients' disks; the bits equal those of one process."""

    def build() -> FederatedModule:
        return make(local=LocalTraining(1, 10, penalty=FedDyn(0.1)), selection=Uniform(6))

    alone, path, options = build(), str(tmp_path / "half.ckpt"), {"check_val_every_n_epoch": 4}
    expected = rows(fit(alone, rounds=4, name="alone", **options))
    first = federated(build(), fake_post(tmp_path, build))
    half = fit(first, rounds=2, name="nodes", **options)
    half.save_checkpoint(path)
    if killed == "in a round":  # clients have worked in a round that the server does not know
        half.fit_loop.max_epochs = 3
        fit(federated(build(), fake_post(tmp_path, build)), rounds=3, name="lost", ckpt=path, **options)
    post = fake_post(tmp_path, build)
    post.nodes = {node + 100: each for node, each in post.nodes.items()}
    again = federated(build(), post)
    trainer = fit(again, rounds=4, name="nodes2", ckpt=path, logger=half.logger, **options)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    pd.testing.assert_frame_equal(rows(trainer), expected, check_exact=True)


def test_checkpoints_of_flower_and_simulation_runs_do_not_mix(fit: Fit, tmp_path: Path) -> None:
    alone, on_nodes = make(), federated(make(), fake_post(tmp_path))
    fit(alone, rounds=1, name="alone").save_checkpoint(tmp_path / "alone.ckpt")
    fit(on_nodes, rounds=1, name="nodes").save_checkpoint(tmp_path / "nodes.ckpt")
    with pytest.raises(ConfigurationError, match="go on with hetfl flower server"):
        fit(make(), rounds=2, name="a", ckpt=str(tmp_path / "nodes.ckpt"))
    with pytest.raises(ConfigurationError, match="a run on Flower but got one with residuals of its own"):
        fit(federated(make(), fake_post(tmp_path)), rounds=2, name="b", ckpt=str(tmp_path / "alone.ckpt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"deadline": 0.0}, "deadline"), ({"enough": 1.5}, "share"), ({"start": float("inf")}, "start")],
)
def test_patience_out_of_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Patience(**changes)


def test_a_part_rule_that_needs_gradients_is_refused() -> None:
    module = small_module(levels={"a": Level("a"), "b": Level("b", density=0.3)}, parts=RankedMask(Gradient()))
    with pytest.raises(ConfigurationError, match=r"no gradients on Flower but got RankedMask\(criterion=Gradient\(\)"):
        FlowerClients(module, cast(Nodes, None)).begin()


def test_a_node_of_unknown_clients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 11 for a node but got .12."):
        make_node([12], tmp_path)


def test_a_full_disk_loses_the_update_of_one_round_only(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose state cannot be written has no update; it continues from its last state."""
    post = fake_post(tmp_path)
    states = post.nodes[SILENT].states
    save = states.save

    def full(federation: str, client: int, state: Any) -> str:
        if state.round == 1:
            raise OSError(28, "No space left on device", str(tmp_path))
        return save(federation, client, state)

    monkeypatch.setattr(states, "save", full)
    module = make()
    timed(module, post)
    with warned("Round 2: no update of client 5: OSError: .* No space left on device"):
        trainer = fit(module, rounds=3, limit_val_batches=0)
    assert rows(trainer)["sim/failed"].tolist() == [0, 3, 0]
    named = [
        task["state"]
        for to, letter in post.sent
        for task in letter.values()
        if to == SILENT and task.get("client") == 5
    ]
    assert named[0] == ""
    assert named[1] == named[2] != ""
