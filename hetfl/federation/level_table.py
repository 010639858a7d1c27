"""What the levels of a run are, and what each costs: the rows of ``levels.csv``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from hetfl import wire
from hetfl.federation.levels import LevelSet
from hetfl.run_folder import RunFolder
from hetfl.submodel import index_layout

if TYPE_CHECKING:
    from hetfl.federation.module import FederatedModule


@dataclass(frozen=True)
class LevelRow:
    """One level and its costs.

    Attributes:
        level: its name.
        width: hidden channels relative to the global model.
        depth: number of stages; None for the net's own.
        parameters: of its sub-model.
        forward_flops: FLOPs of a forward pass, for one sample.
        training_flops: FLOPs of forward and backward, for one sample.
        down_bytes: to a client in a round: of the sub-model, or of those of all clusters, if it is to choose.
        up_bytes: of a client's message in a round, if it sent every entry as float32.
    """

    level: str
    width: float
    depth: int | None
    parameters: int
    forward_flops: float
    training_flops: float
    down_bytes: int
    up_bytes: int


@dataclass(frozen=True)
class Upload:
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


def rows_of(
    levels: LevelSet,
    flops: Mapping[str, tuple[float, float]],
    uploads: Mapping[str, Upload],
    down: Mapping[str, int],
) -> list[LevelRow]:
    """Return one row per level.

    Args:
        levels: the levels.
        flops: by level, FLOPs of one sample, forward and with backward.
        uploads: by level, what a client sends.
        down: by level, the bytes to a client.
    """
    return [
        LevelRow(
            level=name,
            width=level.width,
            depth=level.depth,
            parameters=levels.parameters[name],
            forward_flops=flops[name][0],
            training_flops=flops[name][1],
            down_bytes=down[name],
            up_bytes=uploads[name].dense(),
        )
        for name, level in levels.items()
    ]


def uploads_of(module: FederatedModule) -> dict[str, Upload]:
    """Return by level what a client sends in a module that is set up.

    That may depend on the client's labels: the one with most classes stands for all.
    """
    data = module.data
    client = max(range(data.num_clients), key=lambda client: int(data.labels(client).sum()))
    found = {}
    for level in module.levels:
        sizes = index_layout(module.upload_index(client, level, 0))
        compressed = sum(
            size for name, size in zip(sizes.shapes, sizes.sizes, strict=True) if name in module.parameter_names
        )
        found[level] = Upload(compressed, sizes.size - compressed)
    return found


def level_table(module: FederatedModule) -> list[LevelRow]:
    """Return the rows of a module that is set up."""
    down = dict(zip(module.forecast.levels, module.forecast.down_L.tolist(), strict=True))
    return rows_of(module.levels, module.flops, uploads_of(module), down)


def save_levels(folder: RunFolder, module: FederatedModule) -> None:
    """Write ``levels.csv``: the columns are the attributes of :class:`LevelRow`."""
    rows = (astuple(row) for row in level_table(module))
    folder.write_table("levels", [field.name for field in fields(LevelRow)], rows)
