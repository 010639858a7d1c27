"""The fixed header of a message."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

MAGIC = b"HTFL"
VERSION = 2

_FIELDS = struct.Struct("<4sBBBBIQQQQQ")
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CHECKSUM.size

DTYPES = (torch.float16, torch.float32, torch.float64)
"""Value dtypes; the code in the header is the position."""

CODES = len(DTYPES)
"""In the place of a value dtype: the values are a block of codes."""

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype("<f2"),
    torch.float32: np.dtype("<f4"),
    torch.float64: np.dtype("<f8"),
}
"""How values lie in the bytes."""


class Kind(IntEnum):
    """What the values stand for."""

    DENSE = 0
    SPARSE = 1
    SEEDED = 2
    LOW_RANK = 3


class Header(NamedTuple):
    """The fields of a header, in the order of the bytes, without the checksum."""

    magic: bytes
    version: int
    kind: int
    dtype: int
    exact_dtype: int
    round: int
    client: int
    size: int
    num_sent: int
    num_exact: int
    support_bytes: int

    def pack(self, body: Sequence[NDArray[Any]]) -> bytes:
        """Return the bytes of the header, the checksum over it and the parts of ``body`` included."""
        fields = _FIELDS.pack(*self)
        checksum = zlib.crc32(fields)
        for part in body:
            checksum = zlib.crc32(part.data, checksum)
        return fields + _CHECKSUM.pack(checksum)


def unpack(data: bytes) -> Header:
    """Return the fields of a message of at least ``HEADER_SIZE`` bytes, unchecked."""
    return Header(*_FIELDS.unpack_from(data))


def checksum_holds(data: bytes) -> bool:
    """Return whether the checksum of a message of at least ``HEADER_SIZE`` bytes is that of its other bytes."""
    view = memoryview(data)
    checksum = zlib.crc32(view[HEADER_SIZE:], zlib.crc32(view[: _FIELDS.size]))
    return _CHECKSUM.unpack_from(data, _FIELDS.size) == (checksum,)


def dense_size(size: int, exact_size: int = 0, itemsize: int = 4) -> int:
    """Return the bytes of a dense message: the length of its encoding.

    Args:
        size: length D of the vector.
        exact_size: entries of the exact block.
        itemsize: bytes of one entry, of the vector and of the exact block alike.
    """
    return HEADER_SIZE + itemsize * (size + exact_size)
