"""What server and node say to each other: records of Flower with plain scalars, and bytes of ``hetfl.wire``.

A request has the records ``request``, ``task.i`` per client and ``model.m`` per sub-model; an answer has ``answer``,
``report.i`` and, where there are any, ``bytes.i``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hetfl.printable import printable
from hetfl.reading import LARGEST_TEXT, parse_json
from hetfl.types import Report, Task

PROTOCOL = 2  # another number: another language
STYPE = "hetfl.wire"
"""What Flower is told that our bytes are; it carries them as they are."""
VALUES, LONGEST = "values", 300  # characters of a node's words that are kept, as one printable line

JobName = Literal["hello", "train", "statistics", "losses"]
Status = Literal["done", "refused", "lost", "failed"]
"""Done; could not be encoded; the state is lost; anything else that went wrong."""
T = TypeVar("T")


class MalformedMessage(ValueError):
    """A message that is not what it should be; its text may quote what came."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class Order:
    """What one client is asked for.

    Attributes:
        task: its task.
        model: the sub-model's values, encoded.
        state: name of the state that it goes on from.
        keep: names of its states that the server may still go back to.
    """

    task: Task
    model: bytes
    state: str = ""
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Request:
    """What a node is asked for.

    Attributes:
        job: what its clients do; ``hello``: it says which clients it serves.
        nonce: a number used once, which the answer repeats.
        federation: name of the federation.
        samples: for ``losses``: how many of a client's; None: all.
        compressor: the compressor's state, packed.
        settings: for ``hello``: what both sides must agree in, by name.
        orders: one per client.
    """

    job: JobName
    nonce: str
    federation: str
    samples: int | None = None
    compressor: bytes = b""
    settings: Mapping[str, str] = field(default_factory=dict)
    orders: Sequence[Order] = ()


@dataclass(frozen=True)
class ClientAnswer:
    """What one client answers.

    Attributes:
        client: its id.
        status: what became of the order.
        reason: why it is not done.
        loss: mean loss.
        samples: size of its training set.
        passes: samples passed through the net.
        steps: number of optimizer steps.
        state: name of the state that is in force if the server takes the update.
        squared_norm: of the residual in it.
        payload: the encoded update or result.
    """

    client: int
    status: Status = "done"
    reason: str = ""
    loss: float = 0.0
    samples: int = 0
    passes: int = 0
    steps: int = 0
    state: str = ""
    squared_norm: float = 0.0
    payload: bytes = b""

    def report(self, task: Task) -> Report:
        """Return the same as a report on a task."""
        report = Report(self.client, task.level, self.samples, self.loss, lr=task.lr, model=task.model)
        return replace(report, passes=self.passes, steps=self.steps)


@dataclass(frozen=True)
class Answer:
    """What a node answers.

    Attributes:
        nonce: of the request.
        clients: to ``hello``: the clients that it serves.
        trouble: why it cannot take part; empty if it can.
        reports: one per client.
    """

    nonce: str
    clients: Sequence[int] = ()
    trouble: str = ""
    reports: Sequence[ClientAnswer] = ()


def request_records(request: Request) -> RecordDict:
    """Return a request as records."""
    models = {id(order.model): order.model for order in request.orders}
    number = {key: position for position, key in enumerate(models)}
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "job": request.job,
        "nonce": request.nonce,
        "federation": request.federation,
        "samples": 0 if request.samples is None else request.samples,
        "compressor": request.compressor,
        "settings": json.dumps(dict(request.settings)),
        "orders": len(request.orders),
    }
    records: dict[str, Any] = {"request": ConfigRecord(head)}
    for position, order in enumerate(request.orders):
        task = order.task
        records[f"task.{position}"] = ConfigRecord(
            {
                "client": task.client,
                "level": task.level,
                "round": task.round,
                "lr": float(task.lr),
                "epochs": task.epochs or 0,
                "model": task.model,
                "values": number[id(order.model)],
                "state": order.state,
                "keep": list(order.keep),
            }
        )
    records |= {f"model.{position}": _bytes_record(model) for position, model in enumerate(models.values())}
    return RecordDict(records)


def read_request(records: RecordDict) -> Request:
    """Return a request.

    Raises:
        MalformedMessage: it is none.
    """
    head = _config(records, "request")
    _check_protocol(head)
    job = _value(head, "job", str)
    if job not in get_args(JobName):
        raise MalformedMessage(f"Expected a job among {get_args(JobName)} but got {job!r}")
    orders = [_read_order(records, position) for position in range(_value(head, "orders", int))]
    return Request(
        job,  # type: ignore[arg-type]
        _value(head, "nonce", str),
        _value(head, "federation", str),
        _value(head, "samples", int) or None,
        _value(head, "compressor", bytes),
        _settings(_value(head, "settings", str)),
        orders,
    )


def _settings(text: str) -> dict[str, str]:
    try:
        settings = parse_json(text, LARGEST_TEXT)
    except ValueError as error:
        raise MalformedMessage(f"Expected settings in JSON but got: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise MalformedMessage("Expected settings, texts by name, but got other JSON")
    return settings


def _read_order(records: RecordDict, position: int) -> Order:
    record = _config(records, f"task.{position}")
    task = Task(
        _value(record, "client", int),
        _value(record, "level", str),
        _value(record, "round", int),
        0,
        _value(record, "lr", float),
        _value(record, "epochs", int) or None,
        model=_value(record, "model", int),
    )
    keep = [str(each) for each in _value(record, "keep", list)]
    return Order(task, _bytes(records, f"model.{_value(record, 'values', int)}"), _value(record, "state", str), keep)


def answer_records(answer: Answer) -> RecordDict:
    """Return an answer as records."""
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "nonce": answer.nonce,
        "trouble": answer.trouble,
        "clients": list(answer.clients),
    }
    records: dict[str, Any] = {"answer": ConfigRecord({**head, "reports": len(answer.reports)})}
    for position, report in enumerate(answer.reports):
        said: dict[str, Any] = {name: value for name, value in vars(report).items() if name != "payload"}
        records[f"report.{position}"] = ConfigRecord(said)
        if report.payload:
            records[f"bytes.{position}"] = _bytes_record(report.payload)
    return RecordDict(records)


def read_answer(records: RecordDict, nonce: str, asked: Sequence[int]) -> Answer:
    """Return an answer whose types have been checked, and that it is one to a request; its values have not.

    Args:
        records: what came.
        nonce: of the request.
        asked: the clients of its orders, one after the other.

    Raises:
        MalformedMessage: it is none, or to another request.
    """
    head = _config(records, "answer")
    _check_protocol(head)
    if (got := _value(head, "nonce", str)) != nonce:
        raise MalformedMessage(f"Expected nonce {nonce} but got {got[:40]!r}: an answer to something else")
    if (count := _value(head, "reports", int)) != len(asked):
        raise MalformedMessage(f"Expected {len(asked)} reports but got {count}")
    clients = _value(head, "clients", list)
    if not all(type(client) is int for client in clients):
        raise MalformedMessage("Expected numbers of clients but got something else")
    reports = [_read_report(records, position) for position in range(count)]
    if (spoke := [report.client for report in reports]) != list(asked):
        raise MalformedMessage(f"Expected reports of clients {list(asked)} but got {spoke}")
    return Answer(nonce, clients, printable(_value(head, "trouble", str), LONGEST), reports)


def _read_report(records: RecordDict, position: int) -> ClientAnswer:
    record = _config(records, f"report.{position}")
    status = _value(record, "status", str)
    if status not in get_args(Status):
        raise MalformedMessage(f"Expected a status among {get_args(Status)} but got {status[:40]!r}")
    return ClientAnswer(
        _value(record, "client", int),
        status,  # type: ignore[arg-type]
        printable(_value(record, "reason", str), LONGEST),
        _value(record, "loss", float),
        _value(record, "samples", int),
        _value(record, "passes", int),
        _value(record, "steps", int),
        _value(record, "state", str),
        _value(record, "squared_norm", float),
        _bytes(records, f"bytes.{position}") if f"bytes.{position}" in records else b"",
    )


def _check_protocol(head: ConfigRecord) -> None:
    if (got := _value(head, "protocol", int)) != PROTOCOL:
        raise MalformedMessage(f"Expected protocol {PROTOCOL} but got {got}: install the same hetfl on both sides")


def _bytes_record(data: bytes) -> ArrayRecord:
    return ArrayRecord({VALUES: Array("uint8", (len(data),), STYPE, data)})


def _bytes(records: RecordDict, name: str) -> bytes:
    record = records.get(name)
    if not isinstance(record, ArrayRecord) or list(record) != [VALUES] or record[VALUES].stype != STYPE:
        raise MalformedMessage(f"Expected bytes of {STYPE} in record {name} but got something else")
    return bytes(record[VALUES].data)


def _config(records: RecordDict, name: str) -> ConfigRecord:
    record = records.get(name)
    if not isinstance(record, ConfigRecord):
        raise MalformedMessage(f"Expected record {name} but got {sorted(records)[:10]}")
    return record


def _value(record: ConfigRecord, name: str, kind: type[T]) -> T:
    value = record.get(name)
    if type(value) is not kind:
        raise MalformedMessage(f"Expected {name} to be {kind.__name__} but got {type(value).__name__}")
    return value
