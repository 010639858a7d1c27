"""Faulty nodes: silent, late, malicious or with a lost disk; the server continues without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from lightning import Trainer

from hetfl import FederatedModule, wire
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import RefusedUpdate
from hetfl.flower.bound import ServerBound
from hetfl.flower.messages import Order, Request, read_request, request_records
from hetfl.flower.records import VALUES
from hetfl.packing import pack
from hetfl.selection import PowerOfChoice
from hetfl.types import Report, Task
from hetfl.updates import DenseUpdate
from tests.conftest import fit_in, small_module
from tests.flower_cases import FakePost, Tamper, federated, make_node, over_the_wire, warned

Fit = Callable[..., Trainer]
SPLIT = {11: range(5), 12: range(5, 8), 13: range(8, 12)}
LIAR = 12


def make(**changes: Any) -> FederatedModule:
    return small_module(**{"uplink": ErrorFeedback(TopK(0.2)), **changes})


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]


def fake_post(folder: Path, tamper: Tamper | None = None, build: Callable[[], FederatedModule] = make) -> FakePost:
    post = FakePost({node: make_node(of, folder / str(node), build) for node, of in SPLIT.items()})
    if tamper is not None:
        post.tamper = tamper
    return post


class DropsUpdates:
    """Wraps a module's clients so that the server accepts nothing from the clients of one node."""

    def __init__(self, module: FederatedModule, where: frozenset[int]) -> None:
        self.inner, self.where, self.known = module.clients, where, False

    def train(self, tasks: Any) -> Any:
        yield from self.inner.train([task for task in tasks if task.client not in self.where])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def altered(answer: RecordDict, name: str, **values: Any) -> ConfigRecord:
    record = answer[name]
    assert isinstance(record, ConfigRecord)
    return ConfigRecord({**record, **values})


def client_of(answer: RecordDict, name: str) -> int:
    client = altered(answer, name)["client"]
    assert isinstance(client, int)
    return client


def changed(**values: Any) -> Tamper:
    """Return a function that changes all reports of the malicious node."""

    def tamper(node: int, answer: RecordDict) -> RecordDict:
        for name in answer if node == LIAR else ():
            if name.startswith("report."):
                answer[name] = altered(answer, name, **values)
        return answer

    return tamper


def with_payload(make_payload: Callable[[bytes], bytes]) -> Tamper:
    def tamper(node: int, answer: RecordDict) -> RecordDict:
        for name in list(answer) if node == LIAR else ():
            if name.startswith("bytes."):
                record = answer[name]
                assert isinstance(record, ArrayRecord)
                record[VALUES].data = make_payload(bytes(record[VALUES].data))
        return answer

    return tamper


def other_header(answer: RecordDict, **values: Any) -> RecordDict:
    answer["answer"] = altered(answer, "answer", **values)
    return answer


def replay() -> Tamper:
    first: list[RecordDict] = []

    def tamper(node: int, answer: RecordDict) -> RecordDict:
        if node != LIAR or "report.0" not in answer:
            return answer
        first.append(answer)
        return first[0] if len(first) > 1 else other_header(answer, nonce="0" * 32)

    return tamper


def wrong_values(payload: bytes) -> bytes:
    return payload[:-4] + b"\x00\x00\xc0\x7f"  # NaN with an invalid checksum


def dense(value: float, size: int) -> Callable[[bytes], bytes]:
    def payload(honest: bytes) -> bytes:
        header = wire.header.unpack(honest)
        update = DenseUpdate(torch.full((size or header.size,), value))
        return wire.encode(update, round=header.round, client=header.client)

    return payload


LIES: dict[str, tuple[Tamper, str]] = {
    "a weight of 0": (changed(samples=0), "samples but got 0"),
    "a weight that is NaN": (changed(samples=math.nan), "samples to be int but got float"),
    "more passes": (changed(passes=10**6), "passes"),
    "a residual of Inf": (changed(squared_norm=math.inf), "for a squared norm but got inf"),
    "a replay": (replay(), "Expected nonce"),
    "values changed on the way": (with_payload(wrong_values), "intact message"),
    "another level's size": (with_payload(dense(1.0, 999)), "Expected size"),
    "half a message": (with_payload(lambda payload: payload[:20]), "bytes"),
    "a huge norm": (with_payload(dense(1e12, 0)), "Expected a norm of at most"),
    "fewer reports": (
        lambda node, answer: other_header(answer, reports=0) if node == LIAR and "report.0" in answer else answer,
        "Expected . reports but got 0",
    ),
}
"""False answers of a node with several clients; test_hostile_clients.py has more, with one client per node."""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the final weights of a run that accepts nothing from the malicious node's clients."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("without")
    module = federated(make(), fake_post(folder))
    module.clients = DropsUpdates(module, frozenset(SPLIT[LIAR]))  # type: ignore[assignment]
    fit_in(folder)(module, rounds=2, limit_val_batches=0)
    return module.state_dict()


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_node_does_not_change_the_model(
    fit: Fit, tmp_path: Path, lie: str, without: dict[str, torch.Tensor]
) -> None:
    """The weights equal those of a run without that node's clients, and the log states the fault."""
    tamper, message = LIES[lie]
    lied = federated(make(), fake_post(tmp_path, tamper))
    lied.hooks.append(ServerBound(1e6))
    with warned(f"refused: .*{message}"):
        trainer = fit(lied, rounds=2, name="lied", limit_val_batches=0)
    for name, value in without.items():
        assert torch.equal(value, lied.state_dict()[name]), name
    assert rows(trainer)["comm/refused"].sum() > 0


@pytest.mark.parametrize("lie", ["values changed on the way", "more passes", "a replay"])
def test_false_statistics_are_left_out(fit: Fit, tmp_path: Path, lie: str) -> None:
    """The other clients' sums are enough for every level, so all levels are evaluated."""
    tamper, _ = LIES[lie]
    module = federated(make(), fake_post(tmp_path, tamper))
    with warned("Round 1: statistics of client 5 refused: "):
        trainer = fit(module, rounds=1)
    assert rows(trainer)[[f"val/accuracy_by_level/{level}" for level in module.levels]].notna().all(axis=None)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_refused_and_its_client_is_not_selected(fit: Fit, tmp_path: Path, loss: float) -> None:
    """Power-of-Choice asks all clients and selects the largest losses, but not clients that report NaN or infinity."""

    def build() -> FederatedModule:
        return make(selection=PowerOfChoice(12, 4))

    chosen: set[int] = set()

    def tamper(node: int, answer: RecordDict) -> RecordDict:
        reports = [name for name in answer if name.startswith("report.")]
        payload = any(name.startswith("bytes.") for name in answer)
        if payload:
            chosen.update(client_of(answer, name) for name in reports)
        for name in reports if node == LIAR and not payload else ():
            answer[name] = altered(answer, name, loss=loss)
        return answer

    module = federated(build(), fake_post(tmp_path, tamper, build))
    with warned(rf"Round 1: losses of client 5 refused: .*for a loss but got {loss}"):
        trainer = fit(module, rounds=1, limit_val_batches=0)
    assert rows(trainer)["comm/refused"].tolist() == [len(SPLIT[LIAR])]
    assert len(chosen) == 4
    assert chosen.isdisjoint(SPLIT[LIAR])


def test_a_node_refuses_orders_for_clients_of_other_nodes(tmp_path: Path) -> None:
    """The node refuses an order for a client of another node, and does the other orders of the same request."""
    node = make_node([3, 4], tmp_path, make)
    model = wire.encode(DenseUpdate(torch.zeros(node.bench.size("c"))), round=0, client=0)
    orders = [Order(Task(client, "c", 0, 0, 0.1), model) for client in (3, 5, 4)]
    request = Request("train", "nonce", "0" * 32, compressor=pack({}), orders=orders)
    reports = node.answer(request).reports
    assert [report.status for report in reports] == ["done", "failed", "done"]
    assert "among [3, 4] but got 5" in reports[1].reason


def test_a_node_refuses_a_model_of_wrong_size(tmp_path: Path) -> None:
    node = make_node([3], tmp_path, make)
    model = wire.encode(DenseUpdate(torch.zeros(17)), round=0, client=0)
    request = Request("train", "n", "0" * 32, compressor=pack({}), orders=[Order(Task(3, "c", 0, 0, 0.1), model)])
    (report,) = node.answer(request).reports
    assert report.status == "failed"
    assert "Expected size 158 from client 0 but got 17" in report.reason


def test_requests_survive_encoding_and_decoding() -> None:
    task = Task(7, "b", 3, 0, 0.1 + 0.2, epochs=2, model=1)
    order = Order(task, b"bytes", b"part", "0" * 32, ["0" * 32, "1" * 32])
    request = Request("losses", "n", "f" * 32, 64, b"state", {"a": "b"}, [order, Order(task, b"others", keep=[])])
    assert read_request(over_the_wire(request_records(request))) == request
    hello = Request("hello", "n", "", settings={"seed": "0"}, orders=[])
    assert read_request(over_the_wire(request_records(hello))) == hello


def test_the_servers_norm_bound_is_not_a_setting_of_the_run() -> None:
    """Nodes need not know it, and ``--max_norm inf`` accepts every update."""
    module, plain = make(), make()
    module.hooks.append(ServerBound(1.0))
    assert module.hooks.describe() == plain.hooks.describe() == "none"
    assert module.pieces["hooks.ServerBound"].describe() == ""
    update, report = DenseUpdate(torch.tensor([3.0, 4.0])), Report(0, "a", 1, 0.0)
    assert ServerBound(math.inf).on_update(update, {}, report) is update
    assert ServerBound(None, follows=False).on_update(update, {}, report) is update
    with pytest.raises(RefusedUpdate, match="Expected a norm of at most 1 but got 5"):
        module.hooks.on_update(update, {}, report)
