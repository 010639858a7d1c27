"""From bytes that anyone may have sent to an update, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, SparseUpdate, Update
from hetfl.wire.code_block import block_size, decode_codes
from hetfl.wire.header import (
    CODES,
    DTYPES,
    HEADER_SIZE,
    MAGIC,
    NUMPY_DTYPES,
    VERSION,
    Header,
    Kind,
    checksum_holds,
    unpack,
)
from hetfl.wire.malformed import MalformedPayload, Reason
from hetfl.wire.support import decode_support, most_support_bytes


@dataclass(frozen=True)
class Expected:
    """What the server knows about a message before it comes.

    Args:
        round: the round's number.
        client: the id of the client that was asked.
        size: length D of the vector in the coordinates of the client's index.
        exact_size: entries of the exact block.
        dtype: dtype of the decoded values. They travel in it, as float16 or as codes, which are widened.
        exact_dtype: dtype of the exact block, if it has entries; None: ``dtype``.
        max_count: the most values that a message may have that is not dense. None: D; of a low-rank message 2 D, which
            products of full rank come to at the most.
        layout: the tensors of the vector; None: a message that speaks of single tensors is refused.

    Raises:
        ValueError: the layout is that of a vector of another length.
    """

    round: int
    client: int
    size: int
    exact_size: int = 0
    dtype: torch.dtype = torch.float32
    exact_dtype: torch.dtype | None = None
    max_count: int | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout.size != self.size:
            raise ValueError(f"Expected the layout of a vector of {self.size} entries but got {self.layout.size}")


def decode(data: bytes, expected: Expected) -> Update:
    """Return the update in a message, in tensors of its own; refuse whatever is not exactly what is expected.

    Nothing is allocated before every length in the header agrees with what is expected and with the length of the
    message; memory stays within some 25 times the expected dense message of float32, whatever the bytes.

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
    exact_dtype = _check_dtypes(header, expected)
    _check_counts(header, expected)
    values_at = HEADER_SIZE + header.support_bytes
    exact_at = values_at + _value_bytes(data, values_at, header, expected)
    _require(len(data), exact_at + header.num_exact * exact_dtype.itemsize, Reason.LENGTH, "bytes", expected)
    if not checksum_holds(data):
        raise MalformedPayload(
            Reason.CHECKSUM, f"Expected an intact message from client {expected.client} but got damage"
        )
    empty = decode_support(data, header, expected.size, expected.layout)
    update = _with_values(empty, data, values_at, header, expected)
    if header.num_exact:
        update = update.with_exact(_read_values(data, exact_at, header.num_exact, exact_dtype))
    if not (isinstance(update, DenseUpdate | SparseUpdate) or bool(torch.isfinite(update.to_dense()).all())):
        raise MalformedPayload(Reason.VALUES, "Expected finite products but got an overflow")
    return update


def _require(got: int | bytes, wanted: int | bytes, reason: Reason, what: str, expected: Expected) -> None:
    if got != wanted:
        raise MalformedPayload(reason, f"Expected {what} {wanted!r} from client {expected.client} but got {got!r}")


def _check_origin(header: Header, expected: Expected) -> None:
    _require(header.magic, MAGIC, Reason.FORMAT, "magic", expected)
    _require(header.version, VERSION, Reason.FORMAT, "version", expected)
    if header.kind not in tuple(Kind):
        raise MalformedPayload(
            Reason.FORMAT, f"Expected a kind up to {max(Kind)} from client {expected.client} but got {header.kind}"
        )
    _require(header.round, expected.round, Reason.ROUND, "round", expected)
    _require(header.client, expected.client, Reason.CLIENT, "client", expected)


def _check_dtypes(header: Header, expected: Expected) -> torch.dtype:
    """Return the dtype of the exact block."""
    exact_dtype = (expected.exact_dtype or expected.dtype) if expected.exact_size else torch.float32
    if header.dtype not in (DTYPES.index(torch.float16), DTYPES.index(expected.dtype), CODES):
        raise MalformedPayload(
            Reason.DTYPE,
            f"Expected {expected.dtype}, torch.float16 or codes from client {expected.client} but got {header.dtype}",
        )
    _require(header.exact_dtype, DTYPES.index(exact_dtype), Reason.DTYPE, "the exact block's dtype code", expected)
    return exact_dtype


def _check_counts(header: Header, expected: Expected) -> None:
    _require(header.size, expected.size, Reason.SIZE, "size", expected)
    _require(header.num_exact, expected.exact_size, Reason.COUNT, "exact count", expected)
    most = 2 * expected.size if header.kind == Kind.LOW_RANK else expected.size
    if header.kind == Kind.DENSE:
        _require(header.num_sent, expected.size, Reason.COUNT, "count", expected)
    elif expected.max_count is not None:
        most = min(most, expected.max_count)
    if header.num_sent > most:
        raise MalformedPayload(
            Reason.COUNT, f"Expected at most {most} values from client {expected.client} but got {header.num_sent}"
        )
    longest = most_support_bytes(header, expected.size, expected.layout)
    if header.support_bytes > longest:
        raise MalformedPayload(
            Reason.LENGTH,
            f"Expected at most {longest} support bytes from client {expected.client} but got {header.support_bytes}",
        )


def _value_bytes(data: bytes, offset: int, header: Header, expected: Expected) -> int:
    if header.dtype != CODES:
        return header.num_sent * DTYPES[header.dtype].itemsize
    sections = None if expected.layout is None else len(expected.layout.shapes)
    return block_size(data, offset, header.num_sent, sections)


def _with_values(empty: Update, data: bytes, offset: int, header: Header, expected: Expected) -> Update:
    """Return an update whose entries are known with the values, or codes, that lie at an offset."""
    if header.dtype != CODES:
        values = _read_values(data, offset, header.num_sent, DTYPES[header.dtype])
        return empty.with_values(values.to(expected.dtype))
    layout = expected.layout or Layout({})
    sections = empty.num_sent_per_tensor(layout) if layout.shapes else torch.empty(0, dtype=torch.int64)
    update = empty.with_codes(decode_codes(data, offset, header.num_sent, sections), expected.dtype)
    if not np.isfinite(update.values.numpy()).all():
        raise MalformedPayload(Reason.VALUES, "Expected finite values but got codes that overflow")
    return update


def _read_values(data: bytes, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    stored = np.frombuffer(data, dtype=NUMPY_DTYPES[dtype], count=count, offset=offset)
    if not np.isfinite(stored).all():
        raise MalformedPayload(Reason.VALUES, "Expected finite values but got NaN or Inf")
    return torch.from_numpy(stored.astype(stored.dtype.newbyteorder("=")))
