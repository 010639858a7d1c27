"""The file of a snapshot, ``snapshots/round-00009.safetensors`` in a run folder: what is in it, where it lies.

A file holds, under these names,

- ``weights/<tensor>``: the global model after the round, tensor by tensor;
- ``statistics/<level>/<layer>/mean`` and ``/var``: static batch norm's, if the round was validated;
- ``clients/<level>``, ``held/<level>``, ``sent/<level>``: int64 (T,), one entry per trained tensor;
- ``parts/<level>``: uint8, where a level's tensors lie in the global model, as ``hetfl.wire.encode_part`` has it, for
  the levels whose part is not the leading block of every tensor.

With several global models every further one has a file of its own, ``round-00009-cluster-1.safetensors``.

What else there is to know is JSON in one entry of the file's metadata: safetensors writes several entries in no fixed
order, and the same run would not give the same bytes.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from hetfl.models.static_batch_norm import StaticStatistics
from hetfl.reading import parse_json

FOLDER = "snapshots"
COUNTS = ("clients", "held", "sent")
METADATA = "hetfl"
_NAME = re.compile(r"round-(\d{5,})(?:-cluster-([1-9]\d*))?\.safetensors")


@dataclass(frozen=True)
class Contents:
    """What the metadata of a snapshot says about its tensors.

    Attributes:
        round: the round's number, from 0.
        levels: names of the levels, each with the number of entries of its net.
        weights: names of the global model's tensors, in their order.
        trained: names of those that are trained and compressed: the order of the counts.
        checksums: per name in the file, the CRC-32 of the tensor's bytes.
        cluster: whose model it is, with several global models.
    """

    round: int
    levels: dict[str, int]
    weights: list[str]
    trained: list[str]
    checksums: dict[str, int]
    cluster: int = 0

    def to_json(self) -> str:
        """Return it as JSON with a checksum of its own."""
        own = asdict(self)
        return json.dumps({"contents": own, "checksum": zlib.crc32(json.dumps(own).encode())})

    @staticmethod
    def from_json(text: str) -> Contents:
        """Take it back.

        Raises:
            ValueError: it is not as it was written.
        """
        read = parse_json(text)
        contents: Any = read.get("contents") if isinstance(read, dict) else None
        if not _has_kinds(contents) or zlib.crc32(json.dumps(contents).encode()) != read.get("checksum"):
            raise ValueError("its metadata are not those of a snapshot")
        return Contents(**contents)


KINDS = {
    "round": "int",
    "levels": "dict of int",
    "weights": "list of str",
    "trained": "list of str",
    "checksums": "dict of int",
    "cluster": "int",
}
"""What the entries of :class:`Contents` are."""


def _has_kinds(contents: Any) -> bool:
    """Return whether a value can be made to :class:`Contents`, whose last entry may be missing."""
    if not isinstance(contents, dict) or {*KINDS} - {*contents} not in (set(), {"cluster"}):
        return False
    return all(name in KINDS and KINDS[name].startswith(_kind(value)) for name, value in contents.items())


def _kind(value: Any) -> str:
    """Return the type of a value, and those of its items; if there are none, the former alone."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    kinds = sorted({type(item).__name__ for item in items})
    return " of ".join([type(value).__name__, *([" or ".join(kinds)] if kinds else [])])


def path_of(folder: Path, round: int, cluster: int = 0) -> Path:
    """Return where a run folder keeps the snapshot of a round, of a cluster's model."""
    of_cluster = f"-cluster-{cluster}" if cluster else ""
    return folder / FOLDER / f"round-{round:05d}{of_cluster}.safetensors"


def rounds_in(folder: Path, cluster: int = 0) -> list[int]:
    """Return the rounds that a run folder has snapshots of, in their order, of a cluster's model."""
    matches = (_NAME.fullmatch(path.name) for path in (folder / FOLDER).glob("round-*"))
    rounds = sorted(int(match[1]) for match in matches if match and int(match[2] or 0) == cluster)
    return [round for round in rounds if path_of(folder, round, cluster).is_file()]


def encode(
    *,
    round: int,
    weights: Mapping[str, Tensor],
    levels: Mapping[str, int],
    statistics: Mapping[str, Mapping[str, StaticStatistics]],
    trained: list[str],
    counts: Mapping[str, Tensor],
    parts: Mapping[str, bytes],
    cluster: int = 0,
) -> bytes:
    """Return the bytes of a snapshot: the same for the same arguments.

    Args:
        round: the round's number, from 0.
        weights: the global model's tensors by name.
        levels: names of the levels, each with the number of entries of its net.
        statistics: per level and norm layer, static batch norm's sums for these weights; empty if there are none.
        trained: names of the T trained tensors.
        counts: per level, int64 (3, T): the rows of :data:`COUNTS`.
        parts: per level, the encoded part that stands for it in the round; empty bytes for the leading block.
        cluster: whose model it is.
    """
    tensors = {f"weights/{name}": tensor.detach() for name, tensor in weights.items()}
    dtype = next(iter(weights.values())).dtype
    for level, layers in statistics.items():
        for layer, sums in layers.items():
            # Rounded as a norm layer's own buffers are: an evaluation from here has the bits of the run's.
            tensors[f"statistics/{level}/{layer}/mean"] = (sums.mean_C / sums.batches).to(dtype)
            tensors[f"statistics/{level}/{layer}/var"] = (sums.var_C / sums.batches).to(dtype)
    for level, rows in counts.items():
        tensors |= {f"{kind}/{level}": row for kind, row in zip(COUNTS, rows, strict=True)}
    tensors |= {
        f"parts/{level}": torch.from_numpy(np.frombuffer(part, dtype=np.uint8).copy())
        for level, part in parts.items()
        if part
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    contents = Contents(round, dict(levels), list(weights), trained, checksums, cluster)
    return safetensors.torch.save(tensors, {METADATA: contents.to_json()})


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def forget(folder: Path, before_round: int) -> None:
    """Delete a run folder's snapshots from a round on, and what a killed process left half written."""
    for path in (folder / FOLDER).glob("round-*"):
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) >= before_round and path.is_file():
            path.unlink()
    for torn in (folder / FOLDER).glob("round-*.tmp"):
        torn.unlink()
