"""What Flower pulls of an answer is bounded by what was asked for, before Flower makes anything of it."""

from __future__ import annotations

from importlib import import_module

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from hetfl.flower.metered import OBJECT_BYTES, pull
from hetfl.flower.records import bytes_of, bytes_record
from hetfl.reading import TooMuch
from tests.flower_store import Stored, stored_answer
from tests.hostile_cases import Link, Play


def link_with(records: RecordDict) -> tuple[Link, Stored]:
    """Return a grid that has one answer, to the message "a", and the answer."""
    link = Link({}, Play(""))
    message = Message(RecordDict(), 1, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "a"
    stored = stored_answer(records, message)
    link.store.answers["a"] = stored
    return link, stored


def test_an_answer_of_the_largest_size_is_read_and_a_larger_one_is_not() -> None:
    """The bytes are those of all objects; the SuperLink forgets an answer that is refused, too."""
    records = RecordDict({"bytes": bytes_record(bytes(range(256)) * 40)})
    link, stored = link_with(records)
    size = sum(map(len, stored.contents.values()))
    (message,) = pull(link, "a", size)
    assert bytes_of(message.content, "bytes") == bytes(range(256)) * 40
    assert not link.store.pulled
    link, _ = link_with(records)
    with pytest.raises(TooMuch, match=f"^Expected an answer of at most {size - 1:,} bytes but got more$"):
        pull(link, "a", size - 1)
    assert not link.store.pulled


def test_chunks_count_as_often_as_arrays_list_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower cuts an array of zeros into equal chunks, which travel once; the array is as long as all of them."""
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 1000)
    records = RecordDict({"bytes": bytes_record(bytes(50_000))})
    link, stored = link_with(records)
    travelled = sum(map(len, stored.contents.values()))
    assert travelled < 3000
    with pytest.raises(TooMuch, match=r"^Expected an answer of at most 40,000 bytes but got arrays of 5\d,\d{3}$"):
        pull(link, "a", 40_000)
    assert not link.store.pulled
    link, _ = link_with(records)
    (message,) = pull(link, "a", 60_000)
    assert bytes_of(message.content, "bytes") == bytes(50_000)


def test_an_answer_of_too_many_objects_is_refused_before_one_is_pulled() -> None:
    link, stored = link_with(RecordDict({f"record {number}": ConfigRecord({"n": number}) for number in range(20)}))
    assert len(stored.contents) == 22
    stored.contents.clear()
    with pytest.raises(TooMuch, match="^Expected an answer of at most 21 objects but got 22$"):
        pull(link, "a", 21 * OBJECT_BYTES)
    assert not link.store.pulled


def test_the_server_app_of_flower_has_the_grid_that_is_metered() -> None:
    """Another class of a later Flower would pull without a bound."""
    assert vars(import_module("flwr.superlink.runtime.run_serverapp"))["HttpGrid"] is Link.__mro__[1]
