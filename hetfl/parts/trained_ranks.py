"""Clients of low-rank adapters that receive more ranks than they train."""

from __future__ import annotations

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.factors import pairs_of
from hetfl.layout import IndexEntry
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.parts.prefix import Prefix


class TrainedRanks(Prefix):
    """A client receives the leading r ranks of its level, and trains and sends only the first of them.

    The other ranks are a frozen part of its net: a client with a fast downlink and a slow chip gets a better forward
    pass, and nothing of them is sent (FedHera, ICML 2026). They stay bit for bit, weight decay or not.

    Args:
        trained: by name of a level, the number of ranks that its clients train; other levels train all their ranks.

    Raises:
        ConfigurationError: a number is below 1.
    """

    trains_sent = True

    def __init__(self, trained: dict[str, int]) -> None:
        for level, rank in trained.items():
            if rank < 1:
                raise ConfigurationError(f"Expected at least 1 trained rank at level {level} but got {rank}")
        self.trained = dict(trained)

    def meet(self, levels: LevelSet, seed: int) -> None:
        """Set the levels and the seed.

        Raises:
            ConfigurationError: a level is unknown, its net has no adapters, or they have fewer ranks than it trains.
        """
        super().meet(levels, seed)
        for level, rank in self.trained.items():
            if level not in levels:
                raise ConfigurationError(f"Expected levels among {list(levels)} in trained but got {level!r}")
            shapes = levels.indices[level].layout.shapes
            held = min((shapes[a][0] for a, _ in pairs_of(shapes).values()), default=0)
            if rank > held:
                raise ConfigurationError(
                    f"Expected at most the {held} ranks of level {level} in trained but got {rank}"
                )

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:  # noqa: D102
        rank = self.trained.get(level)
        return part if rank is None else part.derived(("ranks", rank), lambda: leading_ranks(part, rank))


def leading_ranks(part: Part, rank: int) -> Part:
    """Return a part without mask whose factors have only their first ranks."""
    index: dict[str, IndexEntry] = dict(part)
    for a, b in pairs_of(part).values():
        index[a] = (_first(part[a][0], rank), *part[a][1:])
        index[b] = (*part[b][:-1], _first(part[b][-1], rank))
    return Part(index)


def _first(positions: slice | Tensor, count: int) -> slice | Tensor:
    return slice(positions.start, positions.start + count) if isinstance(positions, slice) else positions[:count]
