"""The words of the design as types: levels, indices, layouts, tasks, reports.

Shape suffixes used in this package: N batch, C channels, K classes, D entries of a flat parameter vector,
S clients of a cohort, T tensors of a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from hetfl.arguments import checked
from hetfl.part import Part

NOTHING = Part({})
"""The part of a task whose client holds the leading block of its level."""

SHARED = -1
"""In place of a model's number: the tensors that all models share."""


@checked
@dataclass(frozen=True)
class Level:
    """What a client can afford: a width ratio, a depth, a density, or several of them.

    Args:
        name: the level's letter; in YAML the key of the mapping, filled in from there.
        width: hidden channels relative to the global model, in (0, 1].
        depth: number of stages; None leaves the net's own.
        density: share of the weights' entries that a client holds, in (0, 1]; below 1 for part rules that make masks.
    """

    name: str = ""
    width: float = 1.0
    depth: int | None = None
    density: float = 1.0


class NetFactory(Protocol):
    """What YAML's ``net:`` gives: a class, or a class with some arguments bound, that builds the net of a level.

    It is also called with ``depth``, a number of stages, for levels that have one, and need not take what no level asks
    for. The net's output is logits (N, K), or (H, N, K) if it has H exits, the shallowest first.
    """

    def __call__(self, *, width: float = 1.0) -> nn.Module:
        """Return a freshly initialised net whose hidden channels are scaled by ``width``."""
        ...


@dataclass(frozen=True)
class ClientContext:
    """What local training may know about the client that it is for.

    Attributes:
        client: the client's id.
        round: the round's number, from 0.
        labels: bool, shape (K,) or (S, K) with a leading client dimension: the classes in the client's training data.
        level: the name of the client's level.
        lr: the clients' learning rate γ of the round.
        step: number of the client's step in this round, from 0.
        generator: for a method's own random choices; the client's own, and another one in every round.
        anchor: by name, the tensors that the client began with.
        narrow: returns outputs of the client's net at a smaller level, given the level and inputs.
    """

    client: int
    round: int
    labels: Tensor
    level: str = ""
    lr: float = 0.0
    step: int = 0
    generator: torch.Generator | None = None
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    narrow: Callable[[str, Tensor], Tensor] | None = None

    def narrowed(self, level: str) -> Callable[[Tensor], Tensor]:
        """Return the client's net at a smaller level: its leading channels and first stages, with their gradients.

        The ledger charges the FLOPs of a pass through the whole net all the same.

        Raises:
            ConfigurationError: the level is not a part of the client's.
        """
        assert self.narrow is not None, "only a client's own training has a net to narrow"
        return partial(self.narrow, level)


class CohortContext(ClientContext):
    """The same for several clients at once: labels (S, K), and no single client.

    Args:
        round: the round's number, from 0.
        labels: bool, shape (S, K): the classes in the clients' training data.
        level: the name of the clients' level.
        lr: the clients' learning rate γ of the round.
    """

    def __init__(self, round: int, labels: Tensor, level: str = "", lr: float = 0.0) -> None:
        for name, value in (("round", round), ("labels", labels), ("level", level), ("lr", lr)):
            object.__setattr__(self, name, value)

    @property
    def client(self) -> int:
        """There is none.

        Raises:
            NotImplementedError: always; a loss that asks for it is computed client by client.
        """
        raise NotImplementedError("Expected a loss of single clients but got several clients at once")


@dataclass(frozen=True)
class Task:
    """One client's work in one round.

    Attributes:
        client: the client's id.
        level: the level it works at.
        round: the round.
        version: mark of the global models; another one tells that their values have changed.
        lr: the clients' learning rate γ of the round.
        part: what the client holds of the global model; empty: the leading block of every tensor of its level.
        sent: what it sends of that, parameters and then float buffers.
        epochs: passes over the client's data; None: as local training has it.
        memory_D: what a penalty keeps of the client, shape (D,); None if it is all zero or not needed.
        personal: how far the client's personal entries are from the model's; None: not at all.
        model: number of the global model that it works with.
        owner: under which number the client's state of this task is kept, and its message sent; -1: its id.
        steps: largest number of steps, to learn how long they take; None: all.
    """

    client: int
    level: str
    round: int
    version: int
    lr: float = 0.0
    part: Part = NOTHING
    sent: Part = NOTHING
    epochs: int | None = None
    memory_D: Tensor | None = None
    personal: Tensor | None = None
    model: int = 0
    owner: int = -1
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.owner < 0:
            object.__setattr__(self, "owner", self.client)

    @property
    def key(self) -> tuple[int, int]:
        """What tells the tasks of a round apart: the client and the model."""
        return self.client, self.model


@dataclass(frozen=True)
class Range:
    """Numbers from one to another, both included. NaN is not in any range.

    Attributes:
        low: the smallest number.
        high: the largest number.
        what: the number in words.
    """

    low: float
    high: float
    what: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.high} {self.what}"
        low, high = (f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"from {low} to {high} {self.what}"


@dataclass(frozen=True)
class Report:
    """What is known of a client's local training, beside its update.

    A client reports its samples, passes, steps, loss and extras; the server adds the rest.

    Attributes:
        client: the client's id.
        level: the name of the level it trained.
        samples: size of its training set.
        loss: mean training loss over all samples that were passed.
        flops: floating-point operations spent, forward and backward.
        lr: the clients' learning rate γ_t of the round.
        initial_loss: loss F_k of the model that it was sent, on all of its data; None: nobody asked for it.
        weight: what the selection lets it count; an aggregator may use it.
        model: number of the global model that it trained.
        passes: number of samples passed through the net, repetitions counted.
        steps: number of optimizer steps.
        seconds: simulated seconds from the beginning of its training to the arrival of its update.
        staleness: server steps between the model that it was sent and the model that its update is added to.
        extras: further numbers by name; a piece declares which (:meth:`hetfl.piece.Piece.extras`).
        up_bytes: length of its encoded update.
    """

    client: int
    level: str
    samples: int
    loss: float
    flops: float = 0.0
    lr: float = 0.0
    initial_loss: float | None = None
    weight: float = 1.0
    model: int = 0
    passes: int = 0
    steps: int = 0
    seconds: float = 0.0
    staleness: int = 0
    extras: Mapping[str, float] = field(default_factory=dict)
    up_bytes: int = 0
