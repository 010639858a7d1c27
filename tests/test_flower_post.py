"""Answers of Flower's Grid arrive separately: no answer waits for another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from flwr.app import ConfigRecord, RecordDict

from hetfl.flower.letters import Failure
from hetfl.flower.post import AT_ONCE, FlowerPost


class SlowGrid:
    """FakePost every answer out once, as Flower does, and some answers only when they are complete."""

    def __init__(self, ready: Iterable[str], partial: Iterable[str] = (), errors: Iterable[str] = ()) -> None:
        self.ready, self.partial, self.errors = set(ready), set(partial), set(errors)
        self.whole = threading.Event()
        self.looked: list[str] = []

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (id,) = ids
        self.looked.append(id)
        if id in self.partial:
            self.partial.discard(id)
            self.whole.wait(60)
        elif id in self.errors:
            return [answer(id, error="the node\nis gone")]
        elif id not in self.ready:
            return []
        self.ready.discard(id)
        return [answer(id)]


def answer(id: str, error: str = "") -> Any:
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=id),
        has_error=lambda: bool(error),
        error=SimpleNamespace(reason=error),
        content=RecordDict({"answer": ConfigRecord({"id": id})}),
    )


def collected(post: FlowerPost, ids: list[str], count: int) -> list[str]:
    """Return ``count`` of the answers in order of arrival."""
    arrived: list[str] = []
    until = time.monotonic() + 30
    while len(arrived) < count:
        assert time.monotonic() < until, arrived
        arrived += post.collect([id for id in ids if id not in arrived])
    return sorted(arrived)


def test_an_incomplete_answer_does_not_delay_other_answers() -> None:
    """The node of the incomplete answer died or is slow; the other answers arrive, and that one once it is complete."""
    grid = SlowGrid(ready=["b", "c"], partial=["a"])
    post = FlowerPost(grid)  # type: ignore[arg-type]
    assert collected(post, ["a", "b", "c", "d"], 2) == ["b", "c"]
    assert grid.looked.count("a") == 1, "the answer is handed out once and must be pulled once"
    grid.whole.set()
    assert collected(post, ["a", "d"], 1) == ["a"]


def test_an_error_message_is_a_failure_of_its_node() -> None:
    """The error text comes from the node, and is shown as one line."""
    post = FlowerPost(SlowGrid([], errors=["a"]))  # type: ignore[arg-type]
    assert post.collect(["a"]) == {"a": Failure("Flower: the node\\nis gone")}


def test_many_nodes_are_polled_in_turns() -> None:
    ids = [f"{number}" for number in range(3 * AT_ONCE)]
    grid = SlowGrid(ready=[])
    post = FlowerPost(grid)  # type: ignore[arg-type]
    for _ in range(3):
        post.collect(ids)
    assert sorted(grid.looked) == sorted(ids)
    grid.ready.update(ids)
    assert collected(post, ids, len(ids)) == sorted(ids)


def test_an_unreachable_superlink_ends_the_run() -> None:
    class Gone(SlowGrid):
        def pull_messages(self, ids: Iterable[str]) -> list[Any]:
            raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        FlowerPost(Gone([])).collect(["a"])  # type: ignore[arg-type]
