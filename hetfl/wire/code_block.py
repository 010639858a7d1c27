"""Values as codes, in bytes: a header of 8, zero points, scales, then the codes."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.codes import Codes, Spacing, bits_of, bucket_sizes
from hetfl.errors import RefusedUpdate
from hetfl.wire.bits import Bytes, pack, packed_size, require_zero_padding, unpack
from hetfl.wire.malformed import MalformedPayload, Reason

SPACINGS: tuple[Spacing, ...] = ("affine", "logarithmic")
"""Of codes, by their number in the header."""

_FIELDS = struct.Struct("<BBHI")
_FLOAT = np.dtype("<f4")


class CodeHeader(NamedTuple):
    """The block's header.

    Attributes:
        bits: bits of a code.
        own_zeros: whether every bucket has its own zero point.
        spacing: 0 for affine codes, 1 for logarithmic codes.
        bucket: entries of a bucket; 0: a bucket is a tensor.
    """

    bits: int
    own_zeros: int
    spacing: int
    bucket: int


def encode_codes(codes: Codes, client: int) -> list[NDArray[np.uint8]]:
    """Return the parts of the block.

    Raises:
        RefusedUpdate: a scale or a zero point is not finite.
        ValueError: a code is outside [0, 2^bits), or the buckets are not all of the size that they should have.
    """
    words = codes.codes.cpu().numpy()
    if not 0 <= np.bitwise_or.reduce(words) < 1 << codes.bits:
        raise ValueError(
            f"Expected client {client}'s codes in [0, {1 << codes.bits}) but got {words.min()} to {words.max()}"
        )
    if codes.bucket and not torch.equal(codes.sizes.cpu(), bucket_sizes(words.size, codes.bucket)):
        raise ValueError(f"Expected client {client}'s buckets to have {codes.bucket} entries each but got others")
    scales, zeros = codes.scales.cpu().numpy().astype(_FLOAT), codes.zeros.cpu().numpy().astype(_FLOAT)
    if not (np.isfinite(scales).all() and np.isfinite(zeros).all()):
        raise RefusedUpdate(f"Expected finite scales from client {client} but got an overflow")
    own = int(zeros.size == scales.size != 1)
    header = np.frombuffer(_FIELDS.pack(codes.bits, own, SPACINGS.index(codes.spacing), codes.bucket), dtype=np.uint8)
    return [header, zeros.view(np.uint8), scales.view(np.uint8), pack(words, codes.bits)]


def block_size(data: bytes, offset: int, count: int, sections: int | None) -> int:
    """Return the bytes that the block at an offset must have, from its header alone.

    Args:
        data: the message.
        offset: where the block begins.
        count: number of codes.
        sections: number of buckets where there is one per tensor; None: the server knows no tensors.

    Raises:
        MalformedPayload: no block begins there, or it has a bucket per tensor and there are none.
    """
    header = _header(data, offset)
    if header.bucket == 0 and sections is None:
        raise MalformedPayload(Reason.FORMAT, "Expected buckets of some size but got one per tensor, without a layout")
    buckets = -(-count // header.bucket) if header.bucket else sections or 0
    zeros = buckets if header.own_zeros else 1
    return _FIELDS.size + 4 * (zeros + buckets) + packed_size(count, header.bits)


def decode_codes(data: bytes, offset: int, count: int, sections: Tensor) -> Codes:
    """Return the codes of the block at an offset of a message that is long enough for it.

    Args:
        data: the message.
        offset: where the block begins.
        count: number of codes.
        sections: sizes of the buckets where there is one per tensor, int64.

    Raises:
        MalformedPayload: bits behind the last code, a scale or a zero point that is not finite, or magnitudes of
            logarithmic codes that do not ascend within float32.
    """
    header = _header(data, offset)
    sizes = sections if header.bucket == 0 else bucket_sizes(count, header.bucket)
    start = offset + _FIELDS.size
    own = len(sizes) if header.own_zeros else 1
    numbers = _floats(data, start, own + len(sizes))
    zeros, scales = numbers[:own], numbers[own:]
    start += 4 * numbers.numel()
    packed: Bytes = np.frombuffer(data, dtype=np.uint8, count=packed_size(count, header.bits), offset=start)
    if packed.size:
        require_zero_padding(int(packed[-1]), count * header.bits, Reason.VALUES)
    words = torch.from_numpy(unpack(packed, count, header.bits).astype(np.int32))
    codes = Codes(words, header.bits, scales, zeros, sizes, header.bucket, SPACINGS[header.spacing])
    if codes.spacing == "logarithmic":
        _require_magnitudes(codes)
    return codes


def _require_magnitudes(codes: Codes) -> None:
    """Refuse logarithmic codes whose magnitudes do not ascend within float32.

    Raises:
        MalformedPayload: a smallest magnitude is below 0, a ratio is below 1, or a magnitude overflows.
    """
    least, ratios = codes.zeros.numpy(), codes.scales.numpy()
    largest = np.broadcast_to(least, ratios.shape).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(2 ** (codes.bits - 1) - 1):
            largest *= ratios
        finite = np.isfinite(largest.astype(np.float32)).all()
    if (least < 0).any() or (ratios < 1).any() or not finite:
        raise MalformedPayload(
            Reason.VALUES, "Expected magnitudes that are finite, at least 0, and ascend by ratios of at least 1"
        )


def _header(data: bytes, offset: int) -> CodeHeader:
    if len(data) < offset + _FIELDS.size:
        raise MalformedPayload(Reason.LENGTH, f"Expected a block of codes at byte {offset} but got the end")
    header = CodeHeader(*_FIELDS.unpack_from(data, offset))
    if header.own_zeros > 1 or header.spacing >= len(SPACINGS):
        raise MalformedPayload(Reason.FORMAT, f"Expected a block of affine or logarithmic codes but got {header}")
    fewest, most = bits_of(SPACINGS[header.spacing])
    if not fewest <= header.bits <= most:
        raise MalformedPayload(Reason.FORMAT, f"Expected codes of {fewest} to {most} bits but got {header}")
    return header


def _floats(data: bytes, offset: int, count: int) -> Tensor:
    stored = np.frombuffer(data, dtype=_FLOAT, count=count, offset=offset)
    if not np.isfinite(stored).all():
        raise MalformedPayload(Reason.VALUES, "Expected finite scales and zero points but got NaN or Inf")
    return torch.from_numpy(stored.astype(np.float32))
