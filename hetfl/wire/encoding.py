"""From an update to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.errors import RefusedUpdate
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update, matrix_shape
from hetfl.wire.bits import Bytes
from hetfl.wire.code_block import encode_codes
from hetfl.wire.header import CODES, DTYPES, MAGIC, NUMPY_DTYPES, VERSION, Header, Kind
from hetfl.wire.indices import encode_indices

MOST_RANK = 2**16 - 1


def encode(update: Update, *, round: int, client: int, half_precision: bool = False) -> bytes:
    """Return the message that carries an update; its layout is in ``docs/wire.md``.

    Args:
        update: values in float16, float32 or float64, or codes, on any device.
        round: the round's number, below 2**32.
        client: the client's id, below 2**64.
        half_precision: send the values as float16; codes stay codes, and the exact block keeps its dtype.

    Raises:
        ValueError: what the receiver would refuse: values that are not finite (or are no longer, as float16), indices
            that are not strictly increasing in [0, D), counts, ranks or codes out of range, a dtype without a code.
        TypeError: an update of another class.
    """
    if not (0 <= round < 2**32 and 0 <= client < 2**64):
        raise ValueError(
            f"Expected round in [0, 2**32) and client in [0, 2**64) but got round {round}, client {client}"
        )
    kind, support = _support(update, client)
    dtype = torch.float16 if half_precision else update.values.dtype
    exact_dtype = update.exact.dtype if update.exact.numel() else torch.float32
    if dtype not in DTYPES or exact_dtype not in DTYPES[1:]:
        raise ValueError(
            f"Expected client {client}'s values in {DTYPES} and exact block in {DTYPES[1:]} but got "
            f"{dtype}, {exact_dtype}"
        )
    body = [support, *_value_parts(update, dtype, client)]
    if update.exact.numel():
        body.append(_finite_array(update.exact, exact_dtype, "exact block", client))
    header = Header(
        magic=MAGIC,
        version=VERSION,
        kind=kind,
        dtype=DTYPES.index(dtype) if update.codes is None else CODES,
        exact_dtype=DTYPES.index(exact_dtype),
        round=round,
        client=client,
        size=update.size,
        num_sent=update.num_sent,
        num_exact=update.exact.numel(),
        support_bytes=support.size,
    )
    return b"".join([header.pack(body), *(part.data for part in body)])


def as_sent(update: Update, half_precision: bool = False) -> Update:
    """Return the update that the receiver of :func:`encode`'s message reads."""
    if not half_precision or update.codes is not None:
        return update
    return update.with_values(update.values.half().to(update.values.dtype))


def _support(update: Update, client: int) -> tuple[Kind, Bytes]:
    """Return what tells the receiver which entries the values stand for."""
    match update:
        case DenseUpdate():
            return Kind.DENSE, np.empty(0, dtype=np.uint8)
        case SeededUpdate():
            return Kind.SEEDED, _seed_bytes(update, client)
        case SparseUpdate():
            return Kind.SPARSE, _index_bytes(update, client)
        case LowRankUpdate():
            return Kind.LOW_RANK, _rank_bytes(update, client)
    raise TypeError(f"Expected an update of hetfl.updates from client {client} but got {type(update).__name__}")


def _index_bytes(update: SparseUpdate, client: int) -> Bytes:
    indices = update.indices.cpu().numpy()
    _require_values(update, indices.size, "one per index", client)
    if indices.size and (indices[0] < 0 or indices[-1] >= update.length or bool((indices[1:] <= indices[:-1]).any())):
        raise ValueError(
            f"Expected client {client}'s indices to increase strictly in [0, {update.length}) but got others"
        )
    return encode_indices(indices)


def _seed_bytes(update: SeededUpdate, client: int) -> Bytes:
    if not 0 <= update.seed < 2**64 or min(update.counts, default=0) < 0:
        raise ValueError(f"Expected client {client}'s seed in [0, 2**64) and counts from 0 but got {update.seed}")
    _require_values(update, sum(update.counts), "as its counts say", client)
    return np.array([update.seed, *update.counts], dtype="<u8").view(np.uint8)


def _rank_bytes(update: LowRankUpdate, client: int) -> Bytes:
    shapes = update.layout.shapes.values()
    if not all(
        0 <= rank <= min(*matrix_shape(shape), MOST_RANK) for rank, shape in zip(update.ranks, shapes, strict=True)
    ):
        raise ValueError(f"Expected ranks of client {client} that its tensors can have but got {update.ranks}")
    _require_values(update, sum(LowRankUpdate.lengths(update.layout, update.ranks)), "as its ranks ask for", client)
    return np.array(update.ranks, dtype="<u2").view(np.uint8)


def _require_values(update: Update, wanted: int, why: str, client: int) -> None:
    if update.num_sent != wanted:
        raise ValueError(f"Expected client {client} to send {wanted} values, {why}, but got {update.num_sent}")


def _value_parts(update: Update, dtype: torch.dtype, client: int) -> list[NDArray[Any]]:
    if update.codes is None:
        return [_finite_array(update.values, dtype, "values", client)]
    _require_values(update, update.codes.codes.numel(), "one per code", client)
    _require_finite(update.values.detach().cpu().numpy(), update.values, "values", client)
    return encode_codes(update.codes, client)


def _finite_array(values: Tensor, dtype: torch.dtype, what: str, client: int) -> NDArray[Any]:
    sent = values.detach().to("cpu", dtype).contiguous().numpy().astype(NUMPY_DTYPES[dtype], copy=False)
    _require_finite(sent, values, what, client)
    return sent


def _require_finite(sent: NDArray[Any], values: Tensor, what: str, client: int) -> None:
    if not np.isfinite(sent).all():  # several times faster than torch's
        largest = float(values.detach().abs().max())
        raise RefusedUpdate(
            f"Expected client {client}'s {what} to be finite as torch.{sent.dtype} but got magnitudes up to {largest:g}"
        )
