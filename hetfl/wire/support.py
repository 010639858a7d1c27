"""Which entries the values of a message stand for, read from bytes."""

from __future__ import annotations

import numpy as np
import torch

from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update, matrix_shape
from hetfl.wire.header import HEADER_SIZE, Header, Kind
from hetfl.wire.indices import decode_indices
from hetfl.wire.malformed import MalformedPayload, Reason


def most_support_bytes(header: Header, size: int, layout: Layout | None) -> int:
    """Return the most bytes that the support of a message can take, whose counts have been checked."""
    tensors = 1 if layout is None else max(1, len(layout.shapes))
    match header.kind:
        case Kind.DENSE:
            return 0
        case Kind.SEEDED:
            return 8 + 8 * tensors
        case Kind.LOW_RANK:
            return 2 * tensors
    # The shortest Rice stream of k gaps is no longer than the bitmap of the vector, D / 8 bytes, and one more byte. The
    # rest is for an honest encoder of another kind, whose parameter is not the best.
    return 32 + size // 4 + 4 * header.num_sent


def decode_support(data: bytes, header: Header, size: int, layout: Layout | None) -> Update:
    """Return an update of the entries that a message speaks of, with zeros for values.

    Raises:
        MalformedPayload: the support is not that of so many values.
    """
    count = header.num_sent
    block = np.frombuffer(data, dtype=np.uint8, count=header.support_bytes, offset=HEADER_SIZE)
    values = torch.zeros(1).expand(count)  # in the place of values that are still to be read
    match header.kind:
        case Kind.DENSE:
            return DenseUpdate(values)
        case Kind.SPARSE:
            return SparseUpdate(values, torch.from_numpy(decode_indices(block, count, size)), size)
        case Kind.SEEDED:
            return _seeded(block.tobytes(), count, size, layout)
    return _low_rank(block.tobytes(), count, layout)


def _seeded(block: bytes, count: int, size: int, layout: Layout | None) -> SeededUpdate:
    numbers = np.frombuffer(block[: len(block) // 8 * 8], dtype="<u8").tolist()
    if not numbers or len(block) % 8:
        raise MalformedPayload(Reason.LENGTH, f"Expected a seed and its counts but got {len(block)} bytes")
    seed, *counts = numbers
    sizes = (size,) if len(counts) == 1 or layout is None else layout.sizes
    if len(sizes) != len(counts) or sum(counts) != count or any(k > n for k, n in zip(counts, sizes, strict=True)):
        raise MalformedPayload(Reason.COUNT, f"Expected counts that make {count} within the sections but got others")
    positions = SeededUpdate.positions(seed, sizes, counts)
    return SeededUpdate(torch.zeros(1).expand(count), positions, size, seed, tuple(counts))


def _low_rank(block: bytes, count: int, layout: Layout | None) -> LowRankUpdate:
    tensors = 0 if layout is None else len(layout.shapes)
    if layout is None or len(block) != 2 * tensors:
        raise MalformedPayload(Reason.LENGTH, f"Expected the ranks of {tensors} tensors but got {len(block)} bytes")
    ranks = tuple(np.frombuffer(block, dtype="<u2").tolist())
    if any(rank > min(matrix_shape(shape)) for rank, shape in zip(ranks, layout.shapes.values(), strict=True)):
        raise MalformedPayload(Reason.COUNT, "Expected ranks that the tensors can have but got a larger one")
    if sum(LowRankUpdate.lengths(layout, ranks)) != count:
        raise MalformedPayload(Reason.COUNT, f"Expected {count} values, as the ranks ask for, but got others")
    return LowRankUpdate(torch.zeros(1).expand(count), layout, ranks)
