"""The format and path of the file of a snapshot, ``snapshots/round-00009.safetensors`` in a run folder.

A file holds, under these names,

- ``weights/<tensor>``: the global model after the round, tensor by tensor;
- ``statistics/<level>/<layer>/mean`` and ``/var``: statistics of static batch norm, if the round was validated;
- ``clients/<level>``, ``held/<level>``, ``sent/<level>``: int64 (T,), one entry per trained tensor;
- ``parts/<level>``: uint8, the part of a level as encoded by ``hetfl.wire.encode_part``, for levels whose part is not
  the leading block of every tensor.

With several global models every further model has its own file, such as ``round-00009-cluster-1.safetensors``.

All other contents are JSON in a single entry of the metadata of the file. safetensors writes several entries in no
fixed order, and the same run would then not give the same bytes.
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
    """The metadata of a snapshot.

    Attributes:
        round: number of the round, from 0.
        levels: number of entries of the net of each level, by name.
        weights: names of the tensors of the global model, in order.
        trained: names of the tensors that are trained and compressed, in the order of the counts.
        checksums: the CRC-32 of the bytes of each tensor, by name in the file.
        cluster: the cluster whose model this is, with several global models.
    """

    round: int
    levels: dict[str, int]
    weights: list[str]
    trained: list[str]
    checksums: dict[str, int]
    cluster: int = 0

    def to_json(self) -> str:
        """Return the metadata as JSON, with a checksum of the JSON."""
        contents = asdict(self)
        return json.dumps({"contents": contents, "checksum": zlib.crc32(json.dumps(contents).encode())})

    @staticmethod
    def from_json(text: str) -> Contents:
        """Return the metadata from the result of :meth:`to_json`.

        Raises:
            ValueError: the text is not JSON of this form, or the checksum is wrong.
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
"""Types of the entries of :class:`Contents`."""


def _has_kinds(contents: Any) -> bool:
    """Return whether a value has the types of :class:`Contents`; ``cluster`` may be missing."""
    if not isinstance(contents, dict) or {*KINDS} - {*contents} not in (set(), {"cluster"}):
        return False
    return all(name in KINDS and KINDS[name].startswith(_kind(value)) for name, value in contents.items())


def _kind(value: Any) -> str:
    """Return the type of a value, and of its items if it has any."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    kinds = sorted({type(item).__name__ for item in items})
    return " of ".join([type(value).__name__, *([" or ".join(kinds)] if kinds else [])])


def path_of(folder: Path, round: int, cluster: int = 0) -> Path:
    """Return the path of the snapshot of a round, for the model of a cluster, in a run folder."""
    of_cluster = f"-cluster-{cluster}" if cluster else ""
    return folder / FOLDER / f"round-{round:05d}{of_cluster}.safetensors"


def rounds_in(folder: Path, cluster: int = 0) -> list[int]:
    """Return the rounds of the snapshots in a run folder, ascending, for the model of a cluster."""
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
        round: number of the round, from 0.
        weights: the tensors of the global model by name.
        levels: number of entries of the net of each level, by name.
        statistics: sums of static batch norm for these weights, by level and norm layer; empty if unknown.
        trained: names of the T trained tensors.
        counts: int64 (3, T) by level; the rows are :data:`COUNTS`.
        parts: the encoded part of each level in the round; empty bytes for the leading block.
        cluster: the cluster whose model this is.
    """
    tensors = {f"weights/{name}": tensor.detach() for name, tensor in weights.items()}
    dtype = next(iter(weights.values())).dtype
    for level, layers in statistics.items():
        for layer, sums in layers.items():
            # Rounded like the buffers of a norm layer, so that an evaluation of the snapshot has the bits of the run.
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
    """Return the CRC-32 of the bytes of a tensor."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def forget(folder: Path, before_round: int) -> None:
    """Delete the snapshots of a run folder from a round on, and incomplete files of a killed process."""
    for path in (folder / FOLDER).glob("round-*"):
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) >= before_round and path.is_file():
            path.unlink()
    for torn in (folder / FOLDER).glob("round-*.tmp"):
        torn.unlink()
