"""Two nodes that serve the same clients, names of nodes, versions that differ, deadlines per job."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from lightning import Callback, LightningModule, Trainer

from hetfl import FederatedModule
from hetfl.aggregators import QFedAvg
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.flower.clients import FlowerClients
from hetfl.flower.events import Event
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.register import Register
from hetfl.flower.state_owners import Participant, StateOwners
from hetfl.flower.surroundings import differences
from hetfl.selection import Uniform
from tests.conftest import small_module
from tests.flower_cases import Clock, FakePost, make_node, warned

Fit = Callable[..., Trainer]
SPLIT = {11: range(5), 12: range(5, 8), 13: range(8, 12)}
SECOND = 20


def make(**changes: Any) -> FederatedModule:
    return small_module(**{"uplink": ErrorFeedback(TopK(0.2)), "selection": Uniform(12), **changes})


class Log(list[Event]):
    """Events of a server or a node."""

    def __call__(self, kind: str, text: str, node: str = "", **facts: Any) -> None:
        self.append(Event(kind, text, node, facts))

    def of(self, kind: str) -> list[str]:
        return [f"{event.node}: {event.text}" for event in self if event.kind == kind]


def played(folder: Path, shared: bool, **patience: float) -> tuple[FederatedModule, FakePost, Log, Clock]:
    """Return a module on three nodes and a second one for the clients 5 to 7, with the server's events."""
    post, log, clock = FakePost({}), Log(), Clock()
    for node, clients in {**SPLIT, SECOND: SPLIT[12]}.items():
        states = folder / ("12" if shared and node == SECOND else str(node))
        post.nodes[node] = make_node(clients, states, make)
        post.nodes[node].name, post.nodes[node].report = f"n{node}", Log()
    module = make()
    nodes = Nodes(post, clock, clock.sleep, Register(log))
    module.clients = FlowerClients(module, nodes, Patience(**patience))
    return module, post, log, clock


def silent_in(post: FakePost, node: int, rounds: set[int]) -> None:
    """Let a node give no answer in some rounds; it gives the answer in the round after that."""
    asked: list[int] = []

    def tamper(of: int, answer: Any) -> Any:
        if of != node or "report.0" not in answer:
            return answer
        asked.append(int(post.sent[-1][1]["task.0"]["round"]))  # type: ignore[arg-type]
        if asked[-1] in rounds:
            post.late.append((f"message {len(post.sent) - 1}", answer))
            return None
        return answer

    post.tamper = tamper


def states_named(post: FakePost, node: int) -> list[str]:
    letters = [letter for to, letter in post.sent if to == node and letter["request"]["job"] == "train"]
    return [str(letter["task.0"]["state"]) for letter in letters]


def failures(trainer: Trainer) -> list[float]:
    rows = pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]
    return [float(value) for value in rows["sim/failed"]]


def test_one_missed_deadline_does_not_lose_a_state(fit: Fit, tmp_path: Path) -> None:
    """The second node is told that it stands by, and is never asked; the first continues from its state."""
    module, post, log, _ = played(tmp_path, shared=False, deadline=30.0, takeover=100.0)
    silent_in(post, 12, {2})
    with warned("no answer within 30 s"):
        trainer = fit(module, rounds=5, limit_val_batches=0)
    assert failures(trainer) == [0, 0, 3, 3, 0]
    assert not states_named(post, SECOND)
    assert all(states_named(post, 12)[1:])
    told = "node n12 serves clients 5-7, too: it takes over once that node has been away for 100 s"
    assert log.of("standing by") == [f"n20: {told}"]
    assert post.nodes[SECOND].report.of("note") == [f"n20: {told}"]  # type: ignore[attr-defined]
    assert log.of("late") == ["n12: round 3: clients 5-7: no answer within 30 s"]
    assert log.of("back") == ["n12: answered too late: ignored; it is asked again"]


def test_nodes_that_share_their_states_replace_each_other_at_once(fit: Fit, tmp_path: Path) -> None:
    module, post, log, _ = played(tmp_path, shared=True, deadline=30.0)
    silent_in(post, 12, {2})
    with warned("no answer within 30 s"):
        trainer = fit(module, rounds=5, limit_val_batches=0)
    assert failures(trainer) == [0, 0, 3, 0, 0]
    assert len(states_named(post, SECOND)) == 1, "in the round in which the first was late"
    assert all(states_named(post, SECOND))
    assert not log.of("state lost")
    assert "they share their states" in log.of("standing by")[0]


def test_a_restarted_node_is_asked_again_what_it_serves(fit: Fit, tmp_path: Path) -> None:
    """With a registered key it has the same number, and may be back before the server looks."""
    module, post, log, _ = played(tmp_path, shared=True)
    del post.nodes[SECOND]

    class Restart(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                post.activated[12] = "later"
                post.nodes[12].clients = frozenset({5, 6})

    with warned("no node that serves it is there"):
        trainer = fit(module, rounds=4, limit_val_batches=0, callbacks=[Restart()])
    assert [line for line in log.of("joined") if line.startswith("n12")] == ["n12: clients 5-7", "n12: clients 5-6"]
    assert failures(trainer)[:2] == [0, 0]
    assert failures(trainer)[3] == 1


def test_a_client_without_its_state_is_trained_where_losses_are_asked_first(fit: Fit, tmp_path: Path) -> None:
    """The loss needs the personal tensors of the state; the order to train then finds that the state is lost."""
    settings: dict[str, Any] = {"aggregator": QFedAvg(0.5), "personal": ["classifier.*"]}
    post, log, clock = FakePost({}), Log(), Clock()
    for node, clients in SPLIT.items():
        post.nodes[node] = make_node(clients, tmp_path / str(node), partial(make, **settings))
    module = make(**settings)
    module.clients = FlowerClients(module, Nodes(post, clock, clock.sleep, Register(log)), Patience())

    class Lose(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                shutil.rmtree(tmp_path / "12")

    with warned("it begins anew next time"):
        trainer = fit(module, rounds=4, limit_val_batches=0, callbacks=[Lose()])
    assert failures(trainer) == [0, 3, 0, 0]
    assert len(log.of("state lost")) == 3


def test_a_round_waits_for_a_node_if_there_is_none(fit: Fit, tmp_path: Path) -> None:
    module, post, log, clock = played(tmp_path, shared=True, deadline=30.0, start=50.0)
    inner = post.online

    def online() -> Mapping[int, str]:
        return inner() if module.models.version != 1 or clock.now > 40.0 else {}

    post.online = online  # type: ignore[method-assign]
    trainer = fit(module, rounds=3, limit_val_batches=0)
    assert failures(trainer) == [0, 0, 0]
    assert log.of("waiting")[-1] == ": no node is there; the round waits for one for up to 50 s"
    post.online = dict  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="Expected a node that can take part within 50 s but none came"):
        fit(module, rounds=3, name="none", limit_val_batches=0)


def test_a_second_node_takes_over_after_a_while_and_keeps_the_clients(fit: Fit, tmp_path: Path) -> None:
    module, post, log, clock = played(tmp_path, shared=False, deadline=30.0, takeover=50.0)
    inner = post.online

    def online() -> dict[int, str]:
        clock.now += 20.0 if module.models.version >= 2 else 0.0
        return {node: when for node, when in inner().items() if node != 12 or module.models.version < 2}

    post.online = online  # type: ignore[method-assign]
    with warned("no node that serves it is there"):
        trainer = fit(module, rounds=8, limit_val_batches=0)
    failed = failures(trainer)
    assert failed[:3] == [0, 0, 3]
    assert failed[-1] == 0
    assert log.of("gone") == ["n12: it has no connection; clients 5-7"]
    assert len(log.of("state lost")) == 3
    assert [bool(state) for state in states_named(post, SECOND)][:3] == [True, False, True]


def test_a_client_without_a_state_needs_no_wait() -> None:
    clock = Clock()
    owners = StateOwners(clock, 100.0)
    first, second = Participant("a", frozenset({0}), "x"), Participant("b", frozenset({0}), "y")
    assert owners.choose(0, {1: first, 2: second}) == 1
    owners.settle(0, first)
    assert owners.choose(0, {2: second}) is None
    assert owners.choose(0, {2: second}, has_state=False) == 2
    clock.now = 99.0
    assert owners.choose(0, {2: second}) is None
    again = StateOwners(clock, 100.0)
    again.load_state_dict(owners.state_dict())
    assert again.choose(0, {2: second, 3: first}) == 3
    owners.move("x", "z")
    assert owners.choose(0, {4: Participant("a", frozenset({0}), "z")}) == 4
    clock.now = 250.0
    assert owners.choose(0, {2: second}) is None, "it was there in the meantime"
    clock.now = 350.0
    assert owners.choose(0, {2: second}) == 2
    assert owners.choose(0, {}) is None


def test_events_name_nodes_and_count_rounds_from_one(fit: Fit, tmp_path: Path) -> None:
    module, post, log, _ = played(tmp_path, shared=True)
    register = module.clients._nodes.register  # type: ignore[attr-defined]
    fit(module, rounds=2, limit_val_batches=0)
    assert log.of("joined")[0] == "n11: clients 0-4"
    assert log.of("complete") == [": every client has a node"]
    served = [text for text in log.of("served") if text.startswith("n11: ")]
    assert [text[:14] for text in served] == ["n11: round 1: ", "n11: round 2: "]
    standing = register.file.standings
    assert (standing.round, standing.nodes["n11"].served, standing.nodes["n20"].served) == (2, 2, 0)
    assert standing.nodes["n20"].state == "standing by"
    expected = sum(len(report) for report in _payloads(post, 11))
    assert standing.nodes["n11"].up_bytes == expected > 0
    mine = post.nodes[11].report.of("served")  # type: ignore[attr-defined]
    assert [text[:28] for text in mine] == ["n11: round 1: clients 0-4 in", "n11: round 2: clients 0-4 in"]


def _payloads(post: FakePost, node: int) -> list[bytes]:
    """Return the payloads that a node has sent."""
    payloads = []
    for answer in (answer for to, answer in post.answered if to == node):
        for name in answer:
            if name.startswith("bytes."):
                payloads.append(bytes(answer[name]["values"].data))  # type: ignore[union-attr]
    return payloads


def test_nodes_with_other_versions_or_threads_are_named(tmp_path: Path) -> None:
    log, clock = Log(), Clock()
    post = FakePost({node: make_node(of, tmp_path / str(node), make) for node, of in SPLIT.items()})
    for node in post.nodes.values():
        node.report = Log()
    module = make()
    other = {"torch": "0.1", "threads": "7", "kernels": "AVX9"}
    post.tamper = lambda node, answer: with_surroundings(answer, other) if node == 12 else answer
    nodes = Nodes(post, clock, clock.sleep, Register(log), {11: "key one"}, {"torch": "0.2"})
    nodes.gather(post.nodes[11].settings, frozenset(range(12)), 10, Patience())
    differs = log.of("differs")
    assert any("torch 0.1 on node" in text and "0.2 on the server" in text for text in differs)
    assert any("threads 7 on node" in text and "1 on node key one" in text for text in differs)
    assert differences({"a": "1\n"}, {"a": "2", "b": "3"}, ("here", "there")) == "a 1\\n here, 2 there"
    assert module is not None


def with_surroundings(answer: Any, values: dict[str, str]) -> Any:
    import json

    from flwr.app import ConfigRecord

    answer["answer"] = ConfigRecord({**answer["answer"], "surroundings": json.dumps(values)})
    return answer


def test_a_signal_ends_the_wait_for_nodes() -> None:
    clock = Clock()
    nodes = Nodes(FakePost({}), clock, clock.sleep, stopped=lambda: 15 if clock.now > 3 else None)
    with pytest.raises(SystemExit) as end:
        nodes.gather({}, frozenset({0}), 10, Patience())
    assert end.value.code == 143
    assert clock.now < 4


def test_every_job_has_its_deadline() -> None:
    patience = Patience(deadline=5.0, statistics_deadline=7.0)
    assert [patience.of(job) for job in ("train", "statistics", "losses")] == [5.0, 7.0, 5.0]
