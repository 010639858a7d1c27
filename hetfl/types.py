"""Basic types of the design: levels, contexts, tasks, ranges, reports.

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
from hetfl.tree import Tree

NOTHING = Part({})
"""The empty part. In a task that carries no part it stands for the leading block of the client's level."""

COPY = "@"
"""Stands between the name of a tensor and the level whose copy it is."""

SHARED = -1
"""Used in place of a model's number for the tensors that all models share."""


@checked
@dataclass(frozen=True)
class Level:
    """The size of a sub-model that a client can afford: a width ratio, a depth, a density, a rank, or several of them.

    Args:
        name: the level's name; in YAML it is the key of the mapping.
        width: hidden channels relative to the global model, in (0, 1].
        depth: number of stages; None: the default of the net.
        density: share of the weights' entries that a client holds, in (0, 1]; below 1 only with a part rule that makes
            masks.
        rank: rank of the adapters of a net that takes one, such as :class:`hetfl.lora.LoRA`; None: the default of the
            net.
    """

    name: str = ""
    width: float = 1.0
    depth: int | None = None
    density: float = 1.0
    rank: int | None = None


class NetFactory(Protocol):
    """Builds the net of a level: a class, or a class with some arguments bound, as ``net:`` in YAML gives.

    For levels with a depth it is also called with ``depth``, a number of stages, and for those with a rank with
    ``rank``; it need not take arguments that no level uses. The net's output is logits (N, K), or (H, N, K) if it has H
    exits, the shallowest first.
    """

    def __call__(self, *, width: float = 1.0) -> nn.Module:
        """Return a freshly initialised net whose hidden channels are scaled by ``width``."""
        ...


@dataclass(frozen=True)
class ClientContext:
    """The context of a client in local training.

    Attributes:
        client: the client's id.
        round: the round's number, from 0.
        labels: bool, shape (K,) or (S, K) with a leading client dimension: the classes in the client's training data.
        level: the name of the client's level.
        lr: the clients' learning rate γ of the round.
        step: number of the client's step in this round, from 0.
        generator: for the method's random choices; a separate one for each client and round.
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

        The ledger charges the FLOPs of a pass through the client's whole net.

        Raises:
            ConfigurationError: the level is not a part of the client's.
        """
        assert self.narrow is not None, "only a client's own training has a net to narrow"
        return partial(self.narrow, level)


class CohortContext(ClientContext):
    """The context of several clients at once: with labels (S, K), and without a single client.

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
        """Not available for several clients.

        Raises:
            NotImplementedError: always; a loss that reads it is computed client by client.
        """
        raise NotImplementedError("Expected a loss of single clients but got several clients at once")


@dataclass(frozen=True)
class Received:
    """The values of a part as its client reads them in a message that is not exact.

    Attributes:
        values_D: of all entries of the part's index, shape (D,).
        key: tells them from other values of the same part in the same version of the model.
    """

    values_D: Tensor
    key: bytes


@dataclass(frozen=True)
class Task:
    """One client's work in one round.

    Attributes:
        client: the client's id.
        level: the name of its level.
        round: the round.
        version: mark of the global models, which changes whenever their values change.
        lr: the clients' learning rate γ of the round.
        part: the part of the global model that the client holds; empty: the leading block of its level.
        sent: the part of it that the client sends: parameters, then float buffers.
        epochs: passes over the client's data; None: the setting of local training.
        memory_D: the penalty's memory of the client, shape (D,); None if it is all zero or not needed.
        personal: the client's personal entries minus the model's; None: all zero.
        model: number of the global model that the client works with.
        owner: key of the client's state of this task in stores, and id in its message; -1: the client's id.
        steps: largest number of steps, for measurements of their time; None: all steps.
        source: a larger part that the client was sent, which contains its part; empty: it is sent its own part.
        statistics: whether the client gathers the sums of static batch norm.
        received: the values that the client begins with; None: those of the global model.
        first_D: values of the trained parameters that the client trains from in place of those that it was sent, shape
            (D,); None: no others.
        inputs: of an evaluation, which no client owns; None: the client's own data.
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
    source: Part = NOTHING
    statistics: bool = False
    received: Received | None = None
    first_D: Tensor | None = None
    inputs: Tree | None = None

    def __post_init__(self) -> None:
        if self.owner < 0:
            object.__setattr__(self, "owner", self.client)

    @property
    def key(self) -> tuple[int, int]:
        """The key of the task in its round: the client and the model."""
        return self.client, self.model


@dataclass(frozen=True)
class Range:
    """A closed range of numbers. NaN is not in any range.

    Attributes:
        low: the smallest number.
        high: the largest number.
        what: text that names the quantity.
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
    """The report of a client's local training, beside its update.

    The client reports its samples, passes, steps, loss and extras; the server adds the other fields.

    Attributes:
        client: the client's id.
        level: the name of its level.
        samples: size of its training set.
        loss: mean training loss over all samples passed.
        flops: floating-point operations, forward and backward.
        lr: the clients' learning rate γ_t of the round.
        initial_loss: loss F_k of the downloaded model on all of the client's data; None: the client was not asked.
        weight: the client's weight by the selection policy; an aggregator may use it.
        model: number of the global model that it trained.
        passes: number of samples passed through the net, repetitions counted.
        steps: number of optimizer steps.
        seconds: simulated seconds from the start of its training to the arrival of its update.
        staleness: server steps between the downloaded model and the model that its update is added to.
        entry_staleness: mean over the sent entries of the number of these steps that changed the entry.
        extras: extra numbers by name; pieces declare them (:meth:`hetfl.piece.Piece.extras`).
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
    entry_staleness: float = 0.0
    extras: Mapping[str, float] = field(default_factory=dict)
    up_bytes: int = 0
