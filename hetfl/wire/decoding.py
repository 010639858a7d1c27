"""From bytes that anyone may have sent to an update, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetfl.types import DenseUpdate, SparseUpdate, Update
from hetfl.wire.header import DTYPES, HEADER_SIZE, MAGIC, NUMPY_DTYPES, VERSION, Header, Kind, checksum_holds, unpack
from hetfl.wire.malformed import MalformedPayload, Reason
from hetfl.wire.varint import decode_indices, longest_encoding


@dataclass(frozen=True)
class Expected:
    """What the server knows about a message before it comes.

    Args:
        round: the round's number.
        client: the id of the client that was asked.
        size: length D of the vector in the coordinates of the client's index.
        exact_size: entries of the exact block.
        dtype: dtype of the decoded values. They travel in it or as float16, which is widened.
        exact_dtype: dtype of the exact block, if it has entries; None: ``dtype``.
        max_count: the most values that a sparse message may have; None: D.
    """

    round: int
    client: int
    size: int
    exact_size: int = 0
    dtype: torch.dtype = torch.float32
    exact_dtype: torch.dtype | None = None
    max_count: int | None = None


def decode(data: bytes, expected: Expected) -> Update:
    """Return the update in a message, in tensors of its own; refuse whatever is not exactly what is expected.

    Nothing is allocated before every length in the header agrees with what is expected and with the length of the
    message; memory stays within a small multiple of the expected dense message.

    Args:
        data: the message.
        expected: what the server asked for.

    Raises:
        MalformedPayload: any check failed; no other exception is raised, whatever the bytes.
    """
    if len(data) < HEADER_SIZE:
        raise MalformedPayload(Reason.LENGTH, f"Expected at least {HEADER_SIZE} bytes but got {len(data)}")
    header = unpack(data)
    _check_origin(header, expected)
    dtype, exact_dtype = _check_dtypes(header, expected)
    _check_counts(header, expected)
    values_at = HEADER_SIZE + header.index_bytes
    exact_at = values_at + header.num_sent * dtype.itemsize
    _require(len(data), exact_at + header.num_exact * exact_dtype.itemsize, Reason.LENGTH, "bytes", expected)
    if not checksum_holds(data):
        raise MalformedPayload(
            Reason.CHECKSUM, f"Expected an intact message from client {expected.client} but got damage"
        )
    values = _read_values(data, values_at, header.num_sent, dtype).to(expected.dtype)
    exact = _read_values(data, exact_at, header.num_exact, exact_dtype)
    if header.kind == Kind.DENSE:
        return DenseUpdate(values, exact=exact)
    encoded = np.frombuffer(data, dtype=np.uint8, count=header.index_bytes, offset=HEADER_SIZE)
    indices = torch.from_numpy(decode_indices(encoded, header.num_sent, header.size))
    return SparseUpdate(header.size, indices, values, exact=exact)


def _require(got: int | bytes, wanted: int | bytes, reason: Reason, what: str, expected: Expected) -> None:
    if got != wanted:
        raise MalformedPayload(reason, f"Expected {what} {wanted!r} from client {expected.client} but got {got!r}")


def _check_origin(header: Header, expected: Expected) -> None:
    _require(header.magic, MAGIC, Reason.FORMAT, "magic", expected)
    _require(header.version, VERSION, Reason.FORMAT, "version", expected)
    if header.kind not in tuple(Kind):
        raise MalformedPayload(
            Reason.FORMAT, f"Expected kind 0 or 1 from client {expected.client} but got {header.kind}"
        )
    _require(header.round, expected.round, Reason.ROUND, "round", expected)
    _require(header.client, expected.client, Reason.CLIENT, "client", expected)


def _check_dtypes(header: Header, expected: Expected) -> tuple[torch.dtype, torch.dtype]:
    exact_dtype = (expected.exact_dtype or expected.dtype) if expected.exact_size else torch.float32
    if header.dtype not in (DTYPES.index(torch.float16), DTYPES.index(expected.dtype)):
        raise MalformedPayload(
            Reason.DTYPE,
            f"Expected {expected.dtype} or torch.float16 from client {expected.client} but got code {header.dtype}",
        )
    _require(header.exact_dtype, DTYPES.index(exact_dtype), Reason.DTYPE, "the exact block's dtype code", expected)
    return DTYPES[header.dtype], exact_dtype


def _check_counts(header: Header, expected: Expected) -> None:
    _require(header.size, expected.size, Reason.SIZE, "size", expected)
    _require(header.num_exact, expected.exact_size, Reason.COUNT, "exact count", expected)
    if header.kind == Kind.DENSE:
        _require(header.num_sent, expected.size, Reason.COUNT, "count", expected)
        _require(header.index_bytes, 0, Reason.LENGTH, "index bytes", expected)
        return
    most = expected.size if expected.max_count is None else min(expected.size, expected.max_count)
    if header.num_sent > most:
        raise MalformedPayload(
            Reason.COUNT, f"Expected at most {most} values from client {expected.client} but got {header.num_sent}"
        )
    longest = longest_encoding(header.num_sent, expected.size)
    if not header.num_sent <= header.index_bytes <= longest:
        raise MalformedPayload(
            Reason.LENGTH,
            f"Expected {header.num_sent} to {longest} index bytes from client {expected.client} but got "
            f"{header.index_bytes}",
        )


def _read_values(data: bytes, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    stored = np.frombuffer(data, dtype=NUMPY_DTYPES[dtype], count=count, offset=offset)
    values = torch.from_numpy(stored.astype(stored.dtype.newbyteorder("=")))
    if not bool(torch.isfinite(values).all()):
        raise MalformedPayload(Reason.VALUES, "Expected finite values but got NaN or Inf")
    return values
