"""The work of a client from the moment at which it takes the model until its update arrives or is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hetfl import wire
from hetfl.compression import Message
from hetfl.fleet import Work
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.types import Report, Task
from hetfl.updates import Update


@dataclass(frozen=True)
class Reply:
    """A client's answer to a task.

    Attributes:
        task: the task.
        report: the client's report of its training; None if no usable answer arrived.
        payload: the encoded update; empty if the client could not make one.
        refusal: why the client could not make one; empty if it could.
        lost: why no usable answer arrived; empty if one did.
        late: whether the reason was time.
        prepared: the state that the client keeps if the server accepts the update; None if another process keeps it.
        personal: the client's personal entries after training minus the model's; None if the client has none, or if
            another process keeps them.
    """

    task: Task
    report: Report | None = None
    payload: bytes = b""
    refusal: str = ""
    lost: str = ""
    late: bool = False
    prepared: Message | None = None
    personal: Tensor | None = None


@dataclass(frozen=True)
class Flight:
    """A client's work on a task, with its answer, which the server does not see before the client's device is done.

    Attributes:
        task: the task.
        work: bytes and FLOPs, until the client fails if it does.
        reply: the answer; None: the client is lost, and its training was not simulated.
        weight: the client's weight by the selection policy.
        initial_loss: the loss of the model that it took on its data; None: it was not asked.
        number: counts the flights of a run, in the order in which clients took the model.
        start: simulated time at which it took the model.
        end: simulated time at which the update arrives, or at which the client is lost.
    """

    task: Task
    work: Work
    reply: Reply | None = None
    weight: float = 1.0
    initial_loss: float | None = None
    number: int = 0
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Accepted:
    """A client's update that the server accepted.

    Attributes:
        report: the client's report, completed by the server.
        update: the decoded update.
        index: positions of the update's entries in the global model: the sent parameters, then the float buffers.
        peak: the largest absolute value in the update.
    """

    report: Report
    update: Update
    index: Part
    peak: float = 0.0


class Models(Protocol):
    """The global models, as far as flights need them."""

    @property
    def levels(self) -> LevelSet:
        """The levels."""
        ...

    @property
    def tensors(self) -> list[dict[str, Tensor]]:
        """Every model's tensors by name."""
        ...


class Parts(Protocol):
    """Makes the tasks of flights whole again; see :class:`hetfl.federation.task_parts.TaskParts`."""

    @property
    def models(self) -> Models:
        """The global models."""
        ...

    def given(self, task: Task, part: Part) -> Task:
        """Return a task with a part, and the part of it that the client sends."""
        ...

    def compressed(self, task: Task) -> Part:
        """Return the sent parameters, whose vector is compressed."""
        ...


def saved(flight: Flight, parts: Parts) -> dict[str, Any]:
    """Return a flight in plain types and tensors: the update encoded, the part as a client would be told of it."""
    task, levels = flight.task, parts.models.levels
    part = wire.encode_part(task.part, levels.indices[task.level], levels.whole)
    names = ("client", "level", "round", "lr", "epochs", "model", "owner")
    state: dict[str, Any] = {
        "task": {name: getattr(task, name) for name in names},
        "part": _tensor(part),
        "work": _plain(flight.work, ("down_bytes", "flops", "up_bytes", "density")),
        **_plain(flight, ("weight", "initial_loss", "number", "start", "end")),
    }
    reply = flight.reply
    if reply is not None and reply.report is not None:
        report = _plain(reply.report, ("samples", "loss", "passes", "steps"))
        state |= {"report": {**report, "extras": dict(reply.report.extras)}, "refusal": reply.refusal}
        state |= {"payload": _tensor(reply.payload), "personal": _owned(reply.personal)}
        state["residual"] = None if reply.prepared is None else _owned(reply.prepared.residual_D)
    return state


def restored(state: Mapping[str, Any], parts: Parts) -> Flight:
    """Return the flight of a state that :func:`saved` returned."""
    levels, task = parts.models.levels, Task(**state["task"], version=0)
    part = wire.decode_part(_bytes(state["part"]), levels.indices[task.level], levels.whole)
    task = parts.given(task, part)
    reply = None
    if "report" in state:
        report = Report(task.client, task.level, lr=task.lr, model=task.model, **state["report"])
        payload = _bytes(state["payload"])
        message = Message(task.owner, task.round, parts.compressed(task), payload, state["residual"])
        prepared = None if state["refusal"] else message
        reply = Reply(task, report, payload, state["refusal"], prepared=prepared, personal=state["personal"])
    names = ("weight", "initial_loss", "number", "start", "end")
    return Flight(task, Work(**state["work"]), reply, **{name: state[name] for name in names})


def _plain(of: object, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(of, name) for name in names}
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _owned(vector: Tensor | None) -> Tensor | None:
    """Return a copy on the CPU, as the vector may lie in larger memory."""
    return None if vector is None else vector.detach().cpu().clone()
