"""False training answers for a node process of ``hetfl flower client``.

:mod:`tests.hostile_site.sitecustomize` installs them in a node process if its folder is on the Python path.
"""

from __future__ import annotations

import math
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from hetfl.flower import messages
from hetfl.flower.command import client_app
from hetfl.flower.messages import Answer, Order, Request

FORGED = "all is well\nRound 9: update of client 0 at level a refused: by nobody\x1b[2J"


class Garbled(ConfigRecord):
    """A record whose body does not match its head."""

    body = b"\xff" * 40

    def deflate(self) -> bytes:
        return f"ConfigRecord  {len(self.body)}".encode() + b"\x00" + self.body


class Unreadable(RecordDict):
    """Records whose references are not valid JSON."""

    def deflate(self) -> bytes:
        children = ",".join(self.children or {})
        return f"RecordDict {children} 1".encode() + b"\x00" + b"{"


def garbled(answer: RecordDict) -> RecordDict:
    return RecordDict({**answer, "report.0": Garbled({})})


def altered(**values: Any) -> Any:
    def lie(answer: RecordDict) -> RecordDict:
        given = answer["report.0"]
        assert isinstance(given, ConfigRecord)
        return RecordDict({**answer, "report.0": ConfigRecord({**given, **values})})

    return lie


LIES: dict[str, tuple[Any, str]] = {
    "a record that is no protobuf": (garbled, "Expected an answer that can be read but got DecodeError"),
    "records that are no JSON": (Unreadable, "Expected an answer that can be read but got JSONDecodeError"),
    "a norm of 1.7e308": (altered(squared_norm=1.7e308), r"for a squared norm but got 1\.7e\+308"),
    "a weight of 10^18": (altered(samples=10**18), "samples but got 1000000000000000000"),
    "a loss of NaN": (altered(loss=math.nan), "for a loss but got nan"),
    "a forged reason": (altered(status="refused", reason=FORGED), r"all is well\\nRound 9: .* by nobody\\x1b\[2J"),
}
"""One false answer per round: the function that makes it, and a pattern of the server's log message."""


def become_hostile() -> None:
    """Replace this process's training answers by the false answer of the requested round."""
    read, write = messages.read_request, messages.answer_records
    requests: list[Request] = []

    def read_request(records: RecordDict) -> Request:
        requests.append(read(records))
        return requests[-1]

    def answer_records(answer: Answer) -> RecordDict:
        records, request = write(answer), requests[-1]
        orders: list[Order] = list(request.orders)
        if request.job != "train" or not orders:
            return records
        lie, _ = list(LIES.values())[orders[0].task.round % len(LIES)]
        lied: RecordDict = lie(records)
        return lied

    vars(client_app).update(read_request=read_request, answer_records=answer_records)
