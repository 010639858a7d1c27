"""The settings of a reference run, and its inputs: data and random draws of the run under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.reference.layers import Array, Tensors
from tests.reference.nets import Labels, Net, Owned

BUFFERS = ("running_mean", "running_var")
"""Endings of the names of tensors that are not trained and are sent exactly."""

Part = tuple[dict[str, tuple[NDArray[np.int64], ...]], dict[str, NDArray[np.bool_]]]
"""Positions of a sub-model's entries in the global tensors, per dimension, and global masks of some tensors."""

Shapes = Mapping[str, tuple[int, ...]]


def is_buffer(name: str) -> bool:
    return name.endswith(BUFFERS)


@dataclass(frozen=True)
class Rules:
    """The settings of a run.

    Attributes:
        nets: by level, the largest level first.
        shapes: shapes of a level's tensors, by level; parameters come first.
        masked: whether clients mask the loss of absent classes and send only the rows of their classes (HeteroFL).
        ramp_rounds: rounds of the ramp of distillation between heads; 0: no distillation.
        lr: learning rate of clients in round 0; ``gamma`` multiplies it after every round.
        samples: whether means are weighted by the number of samples.
        of_cohort: whether means divide by the weight of the whole cohort, and not by that of an entry's holders.
        q: exponent of q-FedAvg; None: another mean.
        density: density of top-k; None: everything is sent.
        calibrated: after the first round, entries at or above a threshold are sent. The threshold is the median of the
            least sent magnitudes of that round, times the median of the factors that keep the density; both medians are
            weighted by the lengths of the vectors.
        oldest: number of rounds after which a residual is dropped.
        adam: whether the server's optimizer is Adam; else SGD with momentum.
        clusters: number of clusters of IFCA; 1: no clustering.
        shared: names of the tensors that clusters share.
        restarts: how often models that no client chooses are redrawn.
    """

    nets: Mapping[str, Net]
    shapes: Mapping[str, Shapes]
    masked: bool = False
    ramp_rounds: int = 0
    lr: float = 0.1
    gamma: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 4
    clip: float | None = None
    proximal: float = 0.0
    feddyn: float = 0.0
    samples: bool = False
    of_cohort: bool = False
    q: float | None = None
    density: float | None = None
    calibrated: bool = False
    oldest: int | None = None
    server_lr: float = 1.0
    server_momentum: float = 0.0
    adam: bool = False
    clusters: int = 1
    shared: frozenset[str] = frozenset()
    restarts: int = 0
    ask_all: bool = False
    deadline: float | None = None

    @property
    def largest(self) -> str:
        return next(iter(self.nets))

    def contains(self, has: str, level: str) -> bool:
        """Return whether one level contains all entries of another."""
        outer = self.shapes[has]
        return all(
            name in outer and all(i <= o for i, o in zip(shape, outer[name], strict=True))
            for name, shape in self.shapes[level].items()
        )

    def entries(self, level: str, without: frozenset[str] = frozenset()) -> int:
        """Return the number of entries of a level without some tensors."""
        return sum(int(np.prod(shape)) for name, shape in self.shapes[level].items() if name not in without)


@dataclass(frozen=True)
class Samples:
    x: Array
    y: Labels

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Client:
    train: Samples
    test: Samples
    owned: Owned


@dataclass(frozen=True)
class Devices:
    """Properties of the clients' devices, one entry per client, and the rounds in which they are in the fleet."""

    throughput: Array
    downlink: Array
    uplink: Array
    availability: Array
    first_round: NDArray[np.int64]
    last_round: NDArray[np.int64]
    phase: Array
    period: float


@dataclass(frozen=True)
class Given:
    """Inputs and random draws of the run under test.

    Attributes:
        clients: data of the clients.
        validation: held-out samples.
        nobodys: test samples without an owner.
        models: initial values of every cluster's model.
        devices: devices of the clients.
        cohort: returns a round's cohort, from the round and the reachable clients.
        level: returns a client's level in a round.
        epochs: returns the epochs of a round's cohort, from the round and the cohort's size.
        order: returns a permutation of a client's samples per epoch, from (round, client, epochs).
        statistics_order: returns the permutation of the pass for static statistics, from (round, client).
        fails: returns the share of training after which a client fails, from (round, client); None: it does not fail.
        draw: returns the values of a cluster's redrawn model, from (cluster, round).
        part: returns the positions and masks that a client holds, from (level, round, client), with client -1 for the
            level itself; None: leading blocks.
        part_bytes: returns the encoded size of these positions and masks, from (level, round, client).
    """

    clients: list[Client]
    validation: Samples
    nobodys: Samples
    models: list[Tensors]
    devices: Devices
    cohort: Callable[[int, list[int]], list[int]]
    level: Callable[[int, int], str]
    epochs: Callable[[int, int], list[int]]
    order: Callable[[int, int, int], list[NDArray[np.int64]]]
    statistics_order: Callable[[int, int], NDArray[np.int64]]
    fails: Callable[[int, int], float | None]
    draw: Callable[[int, int], Tensors] = field(default=lambda cluster, round: {})
    part: Callable[[str, int, int], Part] | None = None
    part_bytes: Callable[[str, int, int], int] = field(default=lambda level, round, client: 0)
