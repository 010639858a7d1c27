"""The best channels of a ConvNet by the L1 norm of its filters, from the reference's present model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.federation import Federation
from tests.reference.rules import Part


class BestChannels:
    """What a level's clients hold.

    Args:
        federation: has the rules and the present model.
        refresh_every: rounds for which a ranking is kept.

    Attributes:
        ranked: by round of a ranking, the channels of each block, best first.
    """

    def __init__(self, federation: Federation, refresh_every: int) -> None:
        self.federation, self.refresh_every = federation, refresh_every
        self.ranked: dict[int, list[list[int]]] = {}

    def part(self, level: str, t: int, client: int) -> Part:
        """Return the positions; the first call of a round comes before the server's step."""
        theta, due = self.federation.models[0], t - t % self.refresh_every
        if due not in self.ranked:
            filters = [value for name, value in theta.items() if name.endswith("conv.weight")]
            norms = [[float(np.abs(one).sum()) for one in each] for each in filters]
            self.ranked[due] = [sorted(range(len(each)), key=lambda c, each=each: -each[c]) for each in norms]  # type: ignore[misc]
        shapes = self.federation.rules.shapes[level]
        best = [sorted(order[: len(order) if level == "a" else -(-len(order) // 2)]) for order in self.ranked[due]]
        where: dict[str, tuple[NDArray[np.int64], ...]] = {}
        for name, shape in shapes.items():
            held = [np.arange(size) for size in shape]
            if name.startswith("blocks"):
                block = int(name.split(".")[1])
                held[0] = np.array(best[block])
                if len(shape) > 1 and block:
                    held[1] = np.array(best[block - 1])
            elif len(shape) > 1:
                held[1] = np.array(best[-1])
            where[name] = tuple(held)
        return where, {}
