"""What a reference run is told: its rules, and what it is given of the draws and the data of the run under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.reference.layers import Array, Tensors
from tests.reference.nets import Labels, Net, Owned

BUFFERS = ("running_mean", "running_var")
"""How the names of tensors end that nobody trains, and that travel exactly."""

Part = tuple[dict[str, tuple[NDArray[np.int64], ...]], dict[str, NDArray[np.bool_]]]
"""Where the entries of a sub-model lie in global tensors, per dimension; and global masks of some tensors."""

Shapes = Mapping[str, tuple[int, ...]]


def is_buffer(name: str) -> bool:
    return name.endswith(BUFFERS)


@dataclass(frozen=True)
class Rules:
    """The settings of a run.

    Attributes:
        nets: by level, the largest first.
        shapes: by level, of its tensors, the parameters first.
        masked: whether clients speak of their own classes alone (HeteroFL).
        ramp_rounds: of distillation between heads; 0: there is none.
        lr: of clients in round 0; ``gamma`` multiplies it after every round.
        samples: the mean is weighted by number of samples.
        q: of q-FedAvg; None: another mean.
        density: of top-k; None: everything is sent.
        calibrated: after the first round everything is sent that reaches a threshold: the median, by the vectors'
            lengths, of the least magnitudes that were sent in it, times the median of how many times that it must be
            for the density to stay.
        oldest: rounds after which a residual is dropped.
        adam: the server's optimizer is Adam, else SGD with momentum.
        clusters: of IFCA; 1: there are none.
        shared: names of tensors that clusters share.
        restarts: how often models that nobody chooses are drawn anew.
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
        """Return whether a level holds everything that another one does."""
        outer = self.shapes[has]
        return all(
            name in outer and all(i <= o for i, o in zip(shape, outer[name], strict=True))
            for name, shape in self.shapes[level].items()
        )

    def entries(self, level: str, without: frozenset[str] = frozenset()) -> int:
        """Return the number of entries of a level, some tensors left out."""
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
    """What the clients' devices can do, an entry per client, and when they are there."""

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
    """What the run under test was made of, and what it drew.

    Attributes:
        clients: their data.
        validation: held-out samples.
        nobodys: test samples of no client.
        models: initial values of every cluster's model.
        devices: of the clients.
        cohort: of a round, with those within reach.
        level: of a client in a round.
        epochs: of a round's cohort of so many.
        order: permutation per epoch of a client's samples in a round: (round, client, epochs).
        statistics_order: the same of the pass for static statistics: (round, client).
        fails: the share of its training after which a client fails in a round: (round, client).
        draw: values of a model that a cluster gets anew: (cluster, round).
        part: the positions and masks that a client holds: (level, round, client), -1 for the level itself; None: the
            leading blocks.
        part_bytes: of telling a client so: (level, round, client).
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
