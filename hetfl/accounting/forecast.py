"""How long the clients' rounds will take, before they begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hetfl import wire
from hetfl.fleet import Fleet, Work
from hetfl.fleet.numbers import FloatArray, IntArray


class Forecast:
    r"""Predicts the work and the seconds of clients' rounds.

    A client of level l with n samples is sent the sub-model's W bytes, does :math:`E \, n F_l` FLOPs, and sends a share
    of W bytes: how much of a dense update the last round's updates were, all of it at first. A clustering may have it
    try m models before, and an aggregator that goes by losses the one that it is to train: then :math:`(m - 1) W'`
    bytes more come down, W' being what a model does not share with others, :math:`m \, n F'_l` FLOPs are done,
    :math:`F'_l` being those of a forward pass, and one number goes up.

    Args:
        fleet: the clients' devices, drawn.
        sizes: number of training samples of each client.
        epochs: E, passes over a client's data.
        entries: by level, in order, the entries of the sub-model.
        flops: by level the FLOPs of one sample, forward and with backward.
        tried: m, how many models a client tries; 0: it is not asked.
        further: by level, the entries of a model beside another one; None: all of them.
        told: by level, the bytes that tell a client how its part lies; None: it need not be told.
    """

    def __init__(
        self,
        fleet: Fleet,
        sizes: Sequence[int],
        epochs: int,
        entries: Mapping[str, int],
        flops: Mapping[str, tuple[float, float]],
        tried: int = 0,
        further: Mapping[str, int] | None = None,
        told: Mapping[str, int] | None = None,
    ) -> None:
        self.fleet, self.epochs, self.levels = fleet, epochs, list(entries)
        self.samples_N = np.array(sizes)
        self.bytes_L = np.array([wire.dense_size(size) for size in entries.values()])
        self.flops_L = np.array([flops[level][1] for level in entries])
        self.trying_L = tried * np.array([flops[level][0] for level in entries])
        own = entries if further is None else further
        more_L = max(tried - 1, 0) * np.array([wire.dense_size(own[level]) for level in entries])
        more_L += np.array([0 if told is None else told[level] for level in entries])
        self.down_L, self.answer = self.bytes_L + more_L, wire.dense_size(1) if tried else 0

    def seconds(
        self, clients: Sequence[int] | IntArray, positions_S: IntArray, round: int | None, up_share: float = 1.0
    ) -> FloatArray:
        """Return how long the round will take clients, shape (S,).

        Args:
            clients: ids, shape (S,).
            positions_S: the level of each, as a position among the levels.
            round: the round; None: every client as fast as usual.
            up_share: bytes of an update for each byte of a dense one.
        """
        ids_S = np.asarray(clients, np.int64)
        samples_S = self.samples_N[ids_S]
        flops_S = self.flops_L[positions_S] * samples_S * self.epochs + self.trying_L[positions_S] * samples_S
        up_S = self.bytes_L[positions_S] * up_share + self.answer
        work = Work(self.down_L[positions_S], flops_S, up_S)
        return self.fleet.seconds(ids_S, round, work)

    def table(self) -> FloatArray:
        """Return how long a round takes every client at every level, as fast as usual and dense, shape (L, N)."""
        everyone = np.arange(len(self.samples_N))
        at_levels = [np.full(len(everyone), position) for position in range(len(self.levels))]
        return np.stack([self.seconds(everyone, positions, None) for positions in at_levels])

    def down_bytes(self) -> dict[str, int]:
        """Return by level the bytes to a client in a round: of its sub-model, or of all those that it tries."""
        return dict(zip(self.levels, self.down_L.tolist(), strict=True))

    def training_flops(self, client: int, level: str, epochs: int | None) -> float:
        """Return the FLOPs of a client's training.

        Args:
            client: its id.
            level: the name of its level.
            epochs: passes over its data; None: as many as usual.
        """
        passes = int(self.samples_N[client]) * (epochs or self.epochs)
        return float(self.flops_L[self.levels.index(level)]) * passes
