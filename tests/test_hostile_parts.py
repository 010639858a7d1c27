"""Attribution of invalid answers, admission of nodes, and checks of numbers that a simulation's clients report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from httpx import ConnectError, HTTPStatusError, Request, Response
from lightning import Trainer

from hetfl import FederatedModule, wire
from hetfl.aggregators import QFedAvg
from hetfl.compression import ErrorFeedback, Identity
from hetfl.defence.giants import name_giants
from hetfl.defence.ranges import LARGEST, number_of_batches, residual_ranges
from hetfl.federation.clients import OwnClients
from hetfl.flower.letters import Failure
from hetfl.flower.post import FlowerPost
from hetfl.local.training import batches
from hetfl.schedule import Reply
from hetfl.updates import DenseUpdate
from tests.hostile_cases import VICTIM, Play, altered, make, on_nodes, outcome_of
from tests.test_flower_post import answer

Fit = Callable[..., Trainer]
FAULTS = [
    DecodeError("Error parsing message"),
    json.JSONDecodeError("Expecting value", "{", 1),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("not enough values to unpack"),
    KeyError("answer\nRound 9"),
    IndexError("list index out of range"),
    TypeError("unhashable type: 'list'"),
    AttributeError("'list' object has no attribute 'values'"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    HTTPStatusError("404", request=Request("GET", "http://127.0.0.1"), response=Response(404)),
]


class Grid:
    """A Grid whose pulls fail; ``ours`` says whether the SuperLink still serves the run."""

    def __init__(self, error: Exception, ours: bool = True) -> None:
        self.error, self.ours = error, ours

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        raise self.error

    def get_nodes(self) -> list[NodeInfo]:
        if not self.ours:
            raise HTTPStatusError("401", request=Request("GET", "http://127.0.0.1"), response=Response(401))
        return [NodeInfo(node_id=1)]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_unreadable_answers_are_refused(error: Exception) -> None:
    (failure,) = FlowerPost(Grid(error)).collect(["a"]).values()  # type: ignore[arg-type]
    assert isinstance(failure, Failure)
    assert failure.refused
    assert failure.reason.startswith(f"Expected an answer that can be read but got {type(error).__name__}: ")
    assert failure.reason.isprintable()


@pytest.mark.parametrize("error", [DecodeError("x"), FAULTS[-1]], ids=lambda error: type(error).__name__)
def test_a_superlink_that_stopped_serving_the_run_ends_it(error: Exception) -> None:
    """For example, Flower has ended the run: no node is to blame, and the round must not be counted without updates."""
    with pytest.raises(HTTPStatusError, match="401"):
        FlowerPost(Grid(error, ours=False)).collect(["a"])  # type: ignore[arg-type]


def test_an_unreachable_superlink_ends_the_run() -> None:
    with pytest.raises(ConnectError):
        FlowerPost(Grid(ConnectError("nobody there"))).collect(["a"])  # type: ignore[arg-type]


class OneMessage:
    """A Grid that returns one message for every request."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        return [self.message]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=1)]


def test_an_answer_to_another_message_is_refused() -> None:
    (failure,) = FlowerPost(OneMessage(answer("b"))).collect(["a"]).values()  # type: ignore[arg-type]
    assert failure == Failure("Expected an answer to the request but got one to another message", refused=True)


def test_content_that_is_not_a_record_dict_is_refused() -> None:
    message = answer("a")
    message.content = ConfigRecord({"job": "train"})
    (failure,) = FlowerPost(OneMessage(message)).collect(["a"]).values()  # type: ignore[arg-type]
    assert failure == Failure("Expected records but got ConfigRecord", refused=True)


@pytest.mark.parametrize(
    ("clients", "reason"),
    [
        ([2, 99], "from 0 to 3 but got .99."),
        ([-1, 2], "from 0 to 3 but got .-1."),
        (list(range(9999)), "from 0 to 3 but got .4, 5, "),
    ],
)
def test_a_node_that_claims_unknown_clients_cannot_take_part(
    fit: Fit, tmp_path: Path, clients: list[int], reason: str
) -> None:
    """Its client has no node, and the run continues."""
    play = Play("hello", {"clients": altered("answer", clients=clients)})
    play.name = lambda node, job, round: "clients" if (node, job) == (12, "hello") else ""  # type: ignore[method-assign]
    module = on_nodes(make(), tmp_path, play, make)
    outcome = outcome_of(fit, module, 1, "run", limit_val_batches=0)
    message = rf"clients .* cannot take part: Expected clients {reason}"
    assert any(re.search(message, text) for text in outcome.texts)
    assert any(f"no update of client {VICTIM}: no node" in text for text in outcome.by_round[0])


class LyingClients(OwnClients):
    """Clients in the server's process; one of them sends a different false training answer in every round."""

    def __init__(self, module: FederatedModule, lies: list[Callable[[Reply], Reply]]) -> None:
        assert isinstance(module.clients, OwnClients)
        super().__init__(module.executor, module.clients.side)
        self.lies = lies

    def train(self, tasks: Any) -> Any:
        for upload in super().train(tasks):
            lie = self.lies[upload.task.round]
            yield lie(upload) if upload.task.client == VICTIM else upload


def times(factor: float) -> Callable[[Reply], Reply]:
    """Return a function that multiplies an update."""

    def lie(reply: Reply) -> Reply:
        header = wire.header.unpack(reply.payload)
        update = wire.decode(reply.payload, wire.Expected(header.round, header.client, header.size))
        scaled = DenseUpdate(update.to_dense() * factor)
        return replace(reply, payload=wire.encode(scaled, round=header.round, client=header.client))

    return lie


def with_report(reply: Reply, **numbers: Any) -> Reply:
    """Return a reply with other numbers in its report."""
    assert reply.report is not None
    return replace(reply, report=replace(reply.report, **numbers))


FALSE_REPORTS: dict[str, Callable[[Reply], Reply]] = {
    "but got nan": lambda reply: with_report(reply, loss=math.nan),
    "but got 1000000": lambda reply: with_report(reply, samples=10**6),
    "but got 0": lambda reply: with_report(reply, passes=0),
    "for an entry of an update but got": times(1e30),
}


@pytest.mark.filterwarnings("ignore:Round:UserWarning")
def test_clients_of_a_simulation_pass_the_same_checks(fit: Fit) -> None:
    lying, silent = make(), make()
    lying.clients = LyingClients(lying, list(FALSE_REPORTS.values()))
    outcome = outcome_of(fit, lying, len(FALSE_REPORTS), "lying", limit_val_batches=0)
    for round, reason in enumerate(FALSE_REPORTS):
        assert any(
            f"update of client {VICTIM} at level a refused" in text and reason in text
            for text in outcome.by_round[round]
        )
    assert outcome.rows["comm/refused"].tolist() == [1] * len(FALSE_REPORTS)
    silent.clients = LyingClients(silent, [lambda upload: replace(upload, refusal="no")] * len(FALSE_REPORTS))
    expected = outcome_of(fit, silent, len(FALSE_REPORTS), "silent", limit_val_batches=0)
    for name, value in expected.state.items():
        assert torch.equal(value, outcome.state[name]), name


@pytest.mark.parametrize("aggregator", [None, QFedAvg(1.0)], ids=["mean", "q-FedAvg"])
@pytest.mark.parametrize("factor", [1e15, 1e30])
def test_a_huge_update_is_reported_by_client_and_the_run_continues(
    fit: Fit, tmp_path: Path, factor: float, aggregator: Any
) -> None:
    """A Flower client may send a huge update: the model is spoilt if it is accepted, but the log names the client."""

    def build() -> FederatedModule:
        return make(aggregator=aggregator, uplink=ErrorFeedback(Identity()))

    module = on_nodes(build(), tmp_path, Play(""), build)
    inner = module.clients.train

    def train(tasks: Any) -> Any:
        for upload in inner(tasks):
            if upload.payload and (upload.task.client, upload.task.round) == (VICTIM, 0):
                yield times(factor)(upload)
            else:
                yield upload

    module.clients.train = train  # type: ignore[method-assign]
    outcome = outcome_of(fit, module, 2, "run")
    assert len(outcome.rows) == 2
    assert any(f"update of client {VICTIM} " in text for text in outcome.by_round[0])


def test_only_clients_with_huge_updates_are_named() -> None:
    with pytest.warns(UserWarning, match=r"Round 4: update of client 7 has an entry of 5e\+06, 5e\+06 times") as caught:
        name_giants(3, {4: 1.0, 5: 0.5, 6: 100.0, 7: 5e6, 8: 0.0})
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"update of client 7 \('eve'\) has"):
        name_giants(3, {4: 1.0, 5: 0.5, 7: 5e6}, lambda client: f"{client} ('eve')")
    name_giants(3, {4: 1.0, 7: 5e6})
    name_giants(3, {4: 0.0, 5: 0.0, 7: 5e6})


def test_a_norm_beyond_float64_is_infinite() -> None:
    uplink = ErrorFeedback(Identity())
    uplink.note(0, 0, 1.7e308)
    uplink.note(1, 0, 1.7e308)
    assert uplink.norm() == math.inf


def test_sums_of_the_largest_norms_and_losses_are_finite() -> None:
    largest = residual_ranges(10**12, keeps=True)["squared_norm"].high
    assert math.isfinite(largest * 10**9)
    assert math.isfinite(LARGEST * 10**12 * 10**9)
    assert residual_ranges(10**12, keeps=False)["squared_norm"].high == 0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_the_expected_number_of_batches_equals_one_pass(batch_size: int) -> None:
    for samples in range(1, 45):
        made = len(list(batches(samples, batch_size, torch.Generator())))
        assert number_of_batches(samples, batch_size) == made


def test_a_request_sent_back_is_refused_as_answer(fit: Fit, tmp_path: Path) -> None:
    """A node sends the server's request back as its answer."""
    play = Play("train", {"an echo": lambda answer: RecordDict({"request": ConfigRecord({"job": "train"})})})
    module = on_nodes(make(), tmp_path, play, make)
    outcome = outcome_of(fit, module, 1, "run", limit_val_batches=0)
    assert any(r"Expected record answer but got ['request']" in text for text in outcome.by_round[0])
