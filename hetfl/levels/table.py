"""What the levels of a run are, and what each costs: the rows of ``levels.csv``."""

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
        level: its name.
        width: hidden channels relative to the global model.
        depth: number of stages; None for the net's own.
        density: share of the weights' entries that its clients hold.
        parameters: of its net.
        forward_flops: FLOPs of a forward pass, for one sample.
        training_flops: FLOPs of forward and backward, for one sample.
        down_bytes: to a client in a round: of the sub-model, or of those of all clusters, if it is to choose.
        up_bytes: of a client's message in a round, if it sent every entry as float32.
    """

    level: str
    width: float
    depth: int | None
    density: float
    parameters: int
    forward_flops: float
    training_flops: float
    down_bytes: int
    up_bytes: int


@dataclass(frozen=True)
class UploadSize:
    """What a client of a level sends in a round: entries that are compressed, and the exact block beside them."""

    size: int
    exact_size: int

    def dense(self) -> int:
        """Return the bytes if every entry is sent as float32."""
        return wire.dense_size(self.size, self.exact_size)

    def sparse(self, density: float, itemsize: int = 4) -> float:
        r"""Return the expected bytes if each entry is sent with probability p = ``density``, wherever it lies.

        An index takes the entropy of the gap to it, :math:`-\log_2 p - \frac{1 - p}{p} \log_2 (1 - p)` bits; the code
        of the wire comes within 2 % of it from a few hundred indices on.

        Args:
            density: in (0, 1].
            itemsize: bytes of one value; the exact block has float32.
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
        levels: the levels, inspected.
        uploads: by level, what a client sends.
        down: by level, the bytes to a client.
    """
    return [
        LevelCosts(
            level=name,
            width=level.width,
            depth=level.depth,
            density=level.density,
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
