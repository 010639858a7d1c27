"""Predicts the time of clients' rounds before they begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hetfl import wire
from hetfl.fleet import Fleet, Outlook, Work
from hetfl.fleet.numbers import FloatArray, IntArray


class Forecast:
    r"""Predicts the work and the seconds of clients' rounds.

    A client of level l with n samples downloads the sub-model's W bytes, computes :math:`E \, n F_l` FLOPs, and sends
    :math:`q W` bytes, where q is the last round's ratio of update bytes to dense bytes (1 in the first round).

    Before the round, a clustering may have a client compute the losses of m models, and an aggregator that uses losses
    that of one. The client then also downloads :math:`(m - 1) W'` bytes, computes :math:`m \, n F'_l` FLOPs, and sends
    one number. W' are the bytes of a model that it does not share with the others, :math:`F'_l` the FLOPs of a forward
    pass.

    Args:
        fleet: the clients' devices, drawn.
        sizes: number of training samples of each client.
        epochs: E, passes over a client's data.
        entries: by level, in order, the number of entries of the sub-model.
        flops: by level, the FLOPs of one sample: forward, and forward with backward.
        tried: m, the number of models whose losses a client computes; 0: it is not asked.
        further: by level, the number of entries that models do not share; None: all entries.
        told: by level, the bytes that encode the positions of a client's part; None: 0.
        down: by level, the bytes of a coded sub-model, and of a further one; None: W and W'.
        itemsize: bytes of an entry of W and W' that is not coded.
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
        down: Mapping[str, tuple[int, int]] | None = None,
        itemsize: int = 4,
    ) -> None:
        self.fleet, self.epochs, self.levels = fleet, epochs, list(entries)
        self.samples_N = np.array(sizes)
        self.entries_L = np.array(list(entries.values()))
        self.bytes_L = np.array([wire.dense_size(size) for size in entries.values()])
        self.flops_L = np.array([flops[level][1] for level in entries])
        self.trying_L = tried * np.array([flops[level][0] for level in entries])
        unshared = entries if further is None else further
        dense = {
            level: tuple(wire.dense_size(of[level], itemsize=itemsize) for of in (entries, unshared))
            for level in entries
        }
        first_L, further_L = np.array([(down or dense)[level] for level in entries]).T
        told_L = np.array([0 if told is None else told[level] for level in entries])
        self.down_L = first_L + max(tried - 1, 0) * further_L + told_L
        self.answer = wire.dense_size(1) if tried else 0

    def seconds(
        self, clients: Sequence[int] | IntArray, positions_S: IntArray, round: int | None, up_share: float = 1.0
    ) -> FloatArray:
        """Return the predicted seconds of clients' rounds, shape (S,).

        Args:
            clients: ids, shape (S,).
            positions_S: the level of each client, as a position among the levels.
            round: the round; None: every client at its usual speed.
            up_share: q, bytes of an update per byte of a dense one.
        """
        ids_S = np.asarray(clients, np.int64)
        samples_S = self.samples_N[ids_S]
        flops_S = self.flops_L[positions_S] * samples_S * self.epochs + self.trying_L[positions_S] * samples_S
        up_S = self.bytes_L[positions_S] * up_share + self.answer
        work = Work(self.down_L[positions_S], flops_S, up_S)
        return self.fleet.seconds(ids_S, round, work)

    def table(self) -> FloatArray:
        """Return the seconds of every client at every level, at usual speed with dense updates, shape (L, N)."""
        everyone = np.arange(len(self.samples_N))
        at_levels = [np.full(len(everyone), position) for position in range(len(self.levels))]
        return np.stack([self.seconds(everyone, positions, None) for positions in at_levels])

    def outlook(self, deadline: float | None) -> Outlook:
        """Return what is known of levels and devices before a run.

        Args:
            deadline: seconds after which updates are dropped; None: no deadline.
        """
        return Outlook(tuple(self.levels), self.entries_L, self.table(), self.fleet.devices, deadline)

    def down_bytes(self) -> dict[str, int]:
        """Return by level the bytes that a client downloads in a round, for all models that it tries."""
        return dict(zip(self.levels, self.down_L.tolist(), strict=True))

    def training_flops(self, client: int, level: str, epochs: int | None) -> float:
        """Return the FLOPs of a client's training.

        Args:
            client: its id.
            level: the name of its level.
            epochs: passes over its data; None: E.
        """
        passes = int(self.samples_N[client]) * (epochs or self.epochs)
        return float(self.flops_L[self.levels.index(level)]) * passes
