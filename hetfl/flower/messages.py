"""Messages between server and node: Flower records with plain scalars, and bytes in the format of ``hetfl.wire``.

A request has the records ``request``, ``task.i`` per client and ``model.m`` per sub-model. An answer has the records
``answer``, ``report.i`` per client and, for clients with a payload, ``bytes.i``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from flwr.app import ConfigRecord, RecordDict

from hetfl.flower.records import MalformedMessage, bytes_of, bytes_record, config_of, numbers_of, texts_of, value_of
from hetfl.printable import printable
from hetfl.types import Report, Task

PROTOCOL = 6  # version of the messages; both sides must have the same
LONGEST = 300  # characters of a node's text that are kept, as one printable line

JobName = Literal["hello", "note", "train", "statistics", "losses"]
Status = Literal["done", "refused", "lost", "failed"]
"""done: success; refused: no update could be made; lost: the client's state is lost; failed: any other error."""


@dataclass(frozen=True)
class Order:
    """The order for one client.

    Attributes:
        task: the client's task.
        model: the sub-model's values, encoded; if they are coded, those that global models do not share.
        part: their positions in the global model, encoded.
        state: name of the state that the client starts from.
        keep: names of the client's states that a checkpoint of the server may still need.
        shared: the coded values that all global models share, encoded.
        source: the positions of the larger part whose values are in the order, encoded.
        source_level: the level of the larger part; empty: the values are those of ``part``.
    """

    task: Task
    model: bytes
    part: bytes = b""
    state: str = ""
    keep: Sequence[str] = ()
    shared: bytes = b""
    source: bytes = b""
    source_level: str = ""


@dataclass(frozen=True)
class Request:
    """A request to a node.

    Attributes:
        job: the job of its clients; ``hello`` asks the node which clients it serves, ``note`` tells it something.
        nonce: a number used once, which the answer repeats.
        federation: name of the federation.
        samples: for ``losses``: number of samples per client; None: all.
        compressor: the compressor's state, packed.
        settings: for ``hello``: the settings in which both sides must agree, by name.
        orders: one per client.
        note: for ``note``: a line for the node's operator.
    """

    job: JobName
    nonce: str
    federation: str
    samples: int | None = None
    compressor: bytes = b""
    settings: Mapping[str, str] = field(default_factory=dict)
    orders: Sequence[Order] = ()
    note: str = ""

    @property
    def size(self) -> int:
        """The bytes of its models and parts; a model that several clients get counts once."""
        models = {model for order in self.orders for model in (order.model, order.shared)}
        return sum(map(len, models)) + sum(len(order.part) + len(order.source) for order in self.orders)


@dataclass(frozen=True)
class ClientAnswer:
    """The answer of one client.

    Attributes:
        client: its id.
        status: the outcome of the order.
        reason: why the order is not done; empty if it is.
        loss: mean loss.
        samples: size of its training set.
        passes: samples passed through the net.
        steps: number of optimizer steps.
        state: name of the client's state if the server accepts the update.
        squared_norm: squared 2-norm of the residual in that state.
        payload: the encoded update or result.
        extras: extra numbers by name.
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
    extras: Mapping[str, float] = field(default_factory=dict)

    def report(self, task: Task) -> Report:
        """Return the answer's numbers as a report on a task."""
        report = Report(self.client, task.level, self.samples, self.loss, lr=task.lr, model=task.model)
        return replace(report, passes=self.passes, steps=self.steps, extras=self.extras)


@dataclass(frozen=True)
class Answer:
    """The answer of a node.

    Attributes:
        nonce: of the request.
        clients: for ``hello``: the clients that the node serves.
        trouble: why the node cannot take part; empty if it can.
        reports: one per client.
        name: for ``hello``: the node's name.
        states: for ``hello``: the identity of its folder of states.
        surroundings: for ``hello``: versions, threads and kernels by name.
    """

    nonce: str
    clients: Sequence[int] = ()
    trouble: str = ""
    reports: Sequence[ClientAnswer] = ()
    name: str = ""
    states: str = ""
    surroundings: Mapping[str, str] = field(default_factory=dict)


def request_records(request: Request) -> RecordDict:
    """Return a request as records."""
    models = dict.fromkeys(model for order in request.orders for model in (order.model, order.shared) if model)
    number = {model: position for position, model in enumerate(models)}
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "job": request.job,
        "nonce": request.nonce,
        "federation": request.federation,
        "samples": 0 if request.samples is None else request.samples,
        "compressor": request.compressor,
        "settings": json.dumps(dict(request.settings)),
        "orders": len(request.orders),
        "note": request.note,
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
                "values": number.get(order.model, -1),
                "shared": number.get(order.shared, -1),
                "part": order.part,
                "source": order.source,
                "source_level": order.source_level,
                "state": order.state,
                "keep": list(order.keep),
            }
        )
    records |= {f"model.{position}": bytes_record(model) for position, model in enumerate(models)}
    return RecordDict(records)


def read_request(records: RecordDict) -> Request:
    """Return the request in a message's records.

    Raises:
        MalformedMessage: the records are no valid request.
    """
    head = config_of(records, "request")
    _check_protocol(head)
    job = value_of(head, "job", str)
    if job not in get_args(JobName):
        raise MalformedMessage(f"Expected a job among {get_args(JobName)} but got {job!r}")
    orders = [_read_order(records, position) for position in range(value_of(head, "orders", int))]
    return Request(
        job,  # type: ignore[arg-type]
        value_of(head, "nonce", str),
        value_of(head, "federation", str),
        value_of(head, "samples", int) or None,
        value_of(head, "compressor", bytes),
        texts_of(head, "settings"),
        orders,
        printable(value_of(head, "note", str), LONGEST),
    )


def _read_order(records: RecordDict, position: int) -> Order:
    record = config_of(records, f"task.{position}")
    task = Task(
        value_of(record, "client", int),
        value_of(record, "level", str),
        value_of(record, "round", int),
        0,
        value_of(record, "lr", float),
        epochs=value_of(record, "epochs", int) or None,
        model=value_of(record, "model", int),
    )
    keep = [str(each) for each in value_of(record, "keep", list)]
    numbers = (value_of(record, name, int) for name in ("values", "shared"))
    model, shared = (b"" if number < 0 else bytes_of(records, f"model.{number}") for number in numbers)
    state, source = value_of(record, "state", str), value_of(record, "source", bytes)
    part, level = value_of(record, "part", bytes), value_of(record, "source_level", str)
    return Order(task, model, part, state, keep, shared, source, level)


def answer_records(answer: Answer) -> RecordDict:
    """Return an answer as records."""
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "nonce": answer.nonce,
        "trouble": printable(answer.trouble, LONGEST),
        "clients": list(answer.clients),
        "name": answer.name,
        "states": answer.states,
        "surroundings": json.dumps(dict(answer.surroundings)),
    }
    records: dict[str, Any] = {"answer": ConfigRecord({**head, "reports": len(answer.reports)})}
    for position, report in enumerate(answer.reports):
        fields: dict[str, Any] = {
            name: value for name, value in vars(report).items() if name not in ("payload", "extras")
        }
        fields["reason"] = printable(report.reason, LONGEST)
        fields |= {"extras": list(report.extras), "extra_values": [float(value) for value in report.extras.values()]}
        records[f"report.{position}"] = ConfigRecord(fields)
        if report.payload:
            records[f"bytes.{position}"] = bytes_record(report.payload)
    return RecordDict(records)


def read_answer(records: RecordDict, nonce: str, asked: Sequence[int]) -> Answer:
    """Return the answer in a message's records.

    Types, the nonce and the clients are checked; the values of numbers are not.

    Args:
        records: of the message.
        nonce: of the request.
        asked: the clients of the request's orders, in their order.

    Raises:
        MalformedMessage: the records are no valid answer, or an answer to another request.
    """
    head = config_of(records, "answer")
    _check_protocol(head)
    if (got := value_of(head, "nonce", str)) != nonce:
        raise MalformedMessage(f"Expected nonce {nonce} but got {got[:40]!r}: an answer to something else")
    if (count := value_of(head, "reports", int)) != len(asked):
        raise MalformedMessage(f"Expected {len(asked)} reports but got {count}")
    clients = value_of(head, "clients", list)
    if not all(type(client) is int for client in clients):
        raise MalformedMessage("Expected numbers of clients but got something else")
    reports = [_read_report(records, position) for position in range(count)]
    if (reported := [report.client for report in reports]) != list(asked):
        raise MalformedMessage(f"Expected reports of clients {list(asked)} but got {reported}")
    trouble, name, states = (printable(value_of(head, key, str), LONGEST) for key in ("trouble", "name", "states"))
    return Answer(nonce, clients, trouble, reports, name, states, texts_of(head, "surroundings"))


def _read_report(records: RecordDict, position: int) -> ClientAnswer:
    record = config_of(records, f"report.{position}")
    status = value_of(record, "status", str)
    if status not in get_args(Status):
        raise MalformedMessage(f"Expected a status among {get_args(Status)} but got {status[:40]!r}")
    return ClientAnswer(
        value_of(record, "client", int),
        status,  # type: ignore[arg-type]
        printable(value_of(record, "reason", str), LONGEST),
        value_of(record, "loss", float),
        value_of(record, "samples", int),
        value_of(record, "passes", int),
        value_of(record, "steps", int),
        value_of(record, "state", str),
        value_of(record, "squared_norm", float),
        bytes_of(records, f"bytes.{position}") if f"bytes.{position}" in records else b"",
        numbers_of(record, "extras", "extra_values"),
    )


def _check_protocol(head: ConfigRecord) -> None:
    if (got := value_of(head, "protocol", int)) != PROTOCOL:
        raise MalformedMessage(f"Expected protocol {PROTOCOL} but got {got}: install the same hetfl on both sides")
