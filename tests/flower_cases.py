"""Nodes without a network: a fake transport serialises messages to bytes and delivers them under the test's control."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from hetfl import FederatedModule
from hetfl.cli import FederatedTrainer
from hetfl.data import FederatedDataModule
from hetfl.flower.clients import FlowerClients
from hetfl.flower.letters import Failure, Letter
from hetfl.flower.messages import answer_records, read_request
from hetfl.flower.node import Node
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.states import ClientStates
from tests.conftest import small_data, small_module

Tamper = Callable[[int, RecordDict], RecordDict | None]
"""Maps a node and its answer to the delivered answer; None if the answer never arrives."""


def make_node(
    clients: Iterable[int],
    folder: Path,
    make: Callable[[], FederatedModule] = small_module,
    data: Callable[[], FederatedDataModule] = small_data,
    **options: Any,
) -> Node:
    """Return a node that serves some clients, with a separate module and data module."""
    options = {"max_epochs": 10, **options}  # schedules of masks end with the run
    trainer = FederatedTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, **options)
    module, datamodule = make(), data()
    trainer.introduce(module, datamodule)
    return Node(trainer.precision_plugin.convert_module(module), datamodule, frozenset(clients), ClientStates(folder))  # type: ignore[arg-type]


class Clock:
    """A clock that advances only in :meth:`sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakePost:
    """A fake transport that lets nodes answer at once and hands out their answers.

    Args:
        nodes: nodes by id.
    """

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes = dict(nodes)
        self.activated: dict[int, str] = {}  # when nodes were started again
        self.tamper: Tamper = lambda node, answer: answer
        self.sent: list[tuple[int, RecordDict]] = []
        self.answered: list[tuple[int, RecordDict]] = []
        self.late: list[tuple[str, RecordDict]] = []  # answers that a test delivers after the next letters
        self._answers: dict[str, RecordDict | Failure] = {}

    def online(self) -> Mapping[int, str]:
        return dict.fromkeys(self.nodes, "") | self.activated

    def send(self, letters: Mapping[int, Letter], seconds: float) -> dict[int, str]:
        ids = {}
        while self.late and letters:
            self.deliver(*self.late.pop())
        for node, letter in letters.items():
            ids[node] = f"message {len(self.sent)}"
            self.sent.append((node, letter.content))
            request = read_request(over_the_wire(letter.content))
            answer = self.tamper(node, over_the_wire(answer_records(self.nodes[node].answer(request))))
            if answer is not None:
                self.answered.append((node, answer))
                self._answers[ids[node]] = answer
        return ids

    def deliver(self, id: str, answer: RecordDict | Failure) -> None:
        """Deliver an answer late."""
        self._answers[id] = answer

    def collect(self, ids: Collection[str]) -> dict[str, RecordDict | Failure]:
        return {id: self._answers.pop(id) for id in ids if id in self._answers}


def over_the_wire(records: RecordDict) -> RecordDict:
    """Return the records as the receiver decodes them."""
    contents = {id: part.deflate() for id, part in get_all_nested_objects(records).items()}
    inflated = inflate_object_from_contents(records.object_id, contents)
    assert isinstance(inflated, RecordDict)
    return inflated


def federated(module: FederatedModule, post: FakePost, **patience: float) -> FederatedModule:
    """Return a module whose clients are on the nodes of a fake transport."""
    clock = Clock()
    module.clients = FlowerClients(module, Nodes(post, clock, clock.sleep), Patience(**patience))
    return module


@contextmanager
def warned(match: str) -> Iterator[None]:
    """Expect a matching warning; other warnings are allowed, since each client without an update causes one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(each.message) for each in caught]
    assert any(re.search(match, text) for text in texts), texts
