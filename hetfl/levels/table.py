"""The levels of a run and their costs: the rows of ``levels.csv``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from hetfl import wire
from hetfl.levels.level_set import LevelSet
from hetfl.runs import RunFolder


@dataclass(frozen=True)
class LevelCosts:
    """One level and its costs.

    Attributes:
        level: name of the level.
        width: hidden channels relative to the global model.
        depth: number of stages; None: the default of the net.
        density: fraction of the weight entries that its clients hold.
        rank: rank of the adapters; None: the default of the net, or none.
        parameters: number of parameters of its net.
        forward_flops: FLOPs of a forward pass, for one sample.
        training_flops: FLOPs of forward and backward, for one sample.
        down_bytes: bytes that a client receives in a round: its sub-model, or one per cluster if it chooses a cluster.
        up_bytes: bytes that a client sends in a round if it sends every entry as float32.
    """

    level: str
    width: float
    depth: int | None
    density: float
    rank: int | None
    parameters: int
    forward_flops: float
    training_flops: float
    down_bytes: int
    up_bytes: int


@dataclass(frozen=True)
class UploadSize:
    """The entries that a client of a level sends in a round.

    Attributes:
        size: number of entries that are compressed.
        exact_size: number of entries of the exact block.
    """

    size: int
    exact_size: int

    def dense(self) -> int:
        """Return the number of bytes if every entry is sent as float32."""
        return wire.dense_size(self.size, self.exact_size)

    def sparse(self, density: float, itemsize: float = 4) -> float:
        r"""Return the expected bytes if each entry is sent independently with probability p = ``density``.

        An index costs the entropy of its gap, :math:`-\log_2 p - \frac{1 - p}{p} \log_2 (1 - p)` bits; the wire format
        is within 2 % of it for more than a few hundred indices.

        Args:
            density: fraction of the entries that are sent, in (0, 1].
            itemsize: bytes per value; values of the exact block are always float32.
        """
        rest = 1.0 - density
        bits = -math.log2(density) - (rest / density * math.log2(rest) if rest else 0.0)
        return float(wire.dense_size(0, self.exact_size) + self.size * density * (itemsize + bits / 8))


def level_costs(
    levels: LevelSet,
    uploads: Mapping[str, UploadSize],
    down: Mapping[str, int],
) -> list[LevelCosts]:
    """Return one row per level.

    Args:
        levels: the levels, after :meth:`LevelSet.inspect`.
        uploads: by level, the entries that a client sends.
        down: by level, the bytes that a client receives.
    """
    return [
        LevelCosts(
            level=name,
            width=level.width,
            depth=level.depth,
            density=level.density,
            rank=level.rank,
            parameters=levels.parameters[name],
            forward_flops=levels.flops[name][0],
            training_flops=levels.flops[name][1],
            down_bytes=down[name],
            up_bytes=uploads[name].dense(),
        )
        for name, level in levels.items()
    ]


def save_levels(folder: RunFolder, rows: Iterable[LevelCosts]) -> None:
    """Write ``levels.csv``: the columns are the attributes of :class:`LevelCosts`."""
    folder.write_table("levels", [field.name for field in fields(LevelCosts)], map(astuple, rows))
