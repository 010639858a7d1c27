"""A malicious node that sends a different false answer in every round.

One run plays a table of false answers, one per round. :func:`hostile_run` returns the server's warnings and results.
The run must end with the weights of a run in which the malicious node's client sends nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from lightning import Trainer
from torch.optim import SGD

from hetfl import FederatedModule
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import FederatedDataModule, TensorData
from hetfl.flower.clients import FlowerClients
from hetfl.flower.messages import answer_records, read_request
from hetfl.flower.node import Node
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.post import FlowerPost
from hetfl.local import LocalTraining
from hetfl.selection import Uniform
from tests.conftest import small_levels, small_module
from tests.flower_cases import Clock, make_node, over_the_wire
from tests.flower_store import Contents, Store, Stored, stored_answer

Fit = Callable[..., Trainer]
SPLIT = {11: (0, 1), 12: (2,), 13: (3,)}
"""Clients of each node."""
LIAR = 12
VICTIM = SPLIT[LIAR][0]
"""The client of the malicious node."""
HEAD_END, HEAD_VALUE_END = b"\x00", " "
"""In a serialised Flower object: the separator between head and body, and the separator of the head's values."""

Lie = Callable[[RecordDict], RecordDict]
Garble = Callable[[Contents], None]


def data() -> FederatedDataModule:
    """Return 100 noisy images of four classes; four clients train on them for milliseconds."""
    random = torch.Generator().manual_seed(3)
    targets = torch.arange(100) % 4
    pictures = torch.rand(100, 1, 8, 8, generator=random) + targets[:, None, None, None] / 4
    return TensorData(
        train_inputs=pictures,
        train_targets=targets,
        test_inputs=pictures[:20],
        test_targets=targets[:20],
        num_classes=10,
        num_clients=4,
        val_fraction=0.2,
    )


def make(**changes: Any) -> FederatedModule:
    """Return a module whose four clients all take part in every round."""
    arguments: dict[str, Any] = {
        "uplink": ErrorFeedback(TopK(0.2)),
        "selection": Uniform(4),
        "statistics_clients": None,
        "levels": small_levels(1.0),
        "local": LocalTraining(1, 10, 1.0, lambda p: SGD(p, 0.05, 0.9)),  # two batches per client
    }
    return small_module(**{**arguments, **changes})


@dataclass
class Play:
    """The false answers of a run: one per request of a job, in turn.

    Attributes:
        job: the job whose answers are false: ``train``, ``losses`` or ``statistics``.
        lies: functions that change the records of an answer, by name.
        garbles: functions that change the serialised objects of an answer, by name.
        sent: names of the false answers that were sent, by round.
    """

    job: str
    lies: Mapping[str, Lie] = field(default_factory=dict)
    garbles: Mapping[str, Garble] = field(default_factory=dict)
    sent: dict[int, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.lies, *self.garbles]

    def name(self, node: int, job: str, round: int) -> str:
        """Return the name of the false answer to send; empty for an honest answer."""
        if node != LIAR or job != self.job or round >= len(self.names):
            return ""
        self.sent[round] = self.names[round]
        return self.names[round]


class Link(HttpGrid):
    """Flower's Grid, whose answers are bytes in a store until it pulls them.

    Args:
        nodes: nodes by id.
        play: the false answers of the malicious node.
    """

    def __init__(self, nodes: Mapping[int, Node], play: Play) -> None:
        super().__init__(token="none")
        self.nodes, self.play, self.store = dict(nodes), play, Store()
        self._client = self.store  # type: ignore[assignment]
        self._asked = 0
        self.set_run(Run.create_empty(1))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1  # as Flower sets it

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(id := f"message {self._asked}")
            self._asked += 1
            message.metadata.__dict__["_message_id"] = id
            self.store.answers[id] = self._answer(message)
        return ids

    def _answer(self, message: Message) -> Stored:
        node = message.metadata.dst_node_id
        request = read_request(over_the_wire(message.content))
        records = answer_records(self.nodes[node].answer(request))
        name = self.play.name(node, request.job, request.orders[0].task.round if request.orders else -1)
        if name in self.play.lies:
            records = self.play.lies[name](records)
        stored = stored_answer(records, message)
        if name in self.play.garbles:
            self.play.garbles[name](stored.contents)
        return stored


def garbled(kind: str, body: Callable[[bytes], bytes] | bytes, head: str = "") -> Garble:
    """Return a function that replaces the body of the first object of a class; the head states the new length.

    Args:
        kind: class name of the object.
        body: the new body, or a function of the old body.
        head: class name that the head states; empty: ``kind``.
    """

    def garble(contents: Contents) -> None:
        key = next(key for key, content in contents.items() if content.startswith(f"{kind}{HEAD_VALUE_END}".encode()))
        old_head, _, old_body = contents[key].partition(HEAD_END)
        _, children, _ = old_head.decode().split(HEAD_VALUE_END)
        new_body = body if isinstance(body, bytes) else body(old_body)
        new_head = HEAD_VALUE_END.join([head or kind, children, str(len(new_body))])
        contents[key] = new_head.encode() + HEAD_END + new_body

    return garble


def altered(record: str = "report.0", **values: Any) -> Lie:
    """Return a function that changes some values of a record."""

    def lie(answer: RecordDict) -> RecordDict:
        given = answer[record]
        assert isinstance(given, ConfigRecord)
        answer[record] = ConfigRecord({**given, **values})
        return answer

    return lie


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        state: the final weights.
        rows: the table ``metrics.csv``.
        by_round: warnings by round.
        texts: all warnings in order.
    """

    state: Mapping[str, torch.Tensor]
    rows: pd.DataFrame
    by_round: Mapping[int, Sequence[str]]
    texts: Sequence[str]


class Silenced:
    """Clients of a module; results of the malicious node's client are dropped for one job.

    Args:
        module: the module that owns the clients.
        job: name of the job.
    """

    known = False

    def __init__(self, module: FederatedModule, job: str) -> None:
        self.inner, self.job = module.clients, job

    def train(self, tasks: Any) -> Any:
        silent = {VICTIM} if self.job == "train" else set()
        yield from self.inner.train([task for task in tasks if task.client not in silent])

    def run(self, job: Any, tasks: Any) -> Any:
        silent = {VICTIM} if getattr(getattr(job, "func", job), "__name__", "") == self.job else set()
        yield from (result for result in self.inner.run(job, tasks) if result.task.client not in silent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def on_nodes(
    module: FederatedModule, folder: Path, play: Play, build: Callable[[], FederatedModule]
) -> FederatedModule:
    """Return a module whose clients are on nodes behind a :class:`Link`."""
    nodes = {node: make_node(clients, folder / str(node), build, data) for node, clients in SPLIT.items()}
    clock = Clock()
    post = FlowerPost(Link(nodes, play))
    module.clients = FlowerClients(module, Nodes(post, clock, clock.sleep), Patience())
    return module


def outcome_of(fit: Fit, module: FederatedModule, rounds: int, name: str, **options: Any) -> Outcome:
    """Run a module and return its outcome."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(module, data(), rounds=rounds, name=name, **options)
    by_round: dict[int, list[str]] = {}
    texts = [str(each.message) for each in caught]
    for text in texts:
        if match := re.match(r"Round (\d+): ", text):
            by_round.setdefault(int(match[1]) - 1, []).append(text)
    folder = Path(trainer.logger.save_dir)  # type: ignore[union-attr,arg-type]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    return Outcome(state, pd.read_csv(folder / "metrics.csv"), by_round, texts)


def hostile_run(
    fit: Fit, folder: Path, play: Play, build: Callable[[], FederatedModule] = make, **options: Any
) -> tuple[Outcome, Outcome]:
    """Return the outcomes of a run with one false answer per round, and of a run that loses the victim's answers."""
    rounds = len(play.names)
    module = on_nodes(build(), folder / "lied", play, build)
    lied = outcome_of(fit, module, rounds, f"lied_{play.job}", **options)
    silent = on_nodes(build(), folder / "silent", Play(""), build)
    silent.clients = Silenced(silent, play.job)  # type: ignore[assignment]
    return lied, outcome_of(fit, silent, rounds, f"silent_{play.job}", **options)
