"""From an update to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.errors import RefusedUpdate
from hetfl.types import DenseUpdate, SparseUpdate, Update
from hetfl.wire.header import DTYPES, MAGIC, NUMPY_DTYPES, VERSION, Header, Kind
from hetfl.wire.varint import encode_indices


def encode(update: Update, *, round: int, client: int, half_precision: bool = False) -> bytes:
    """Return the message that carries an update; its layout is in the docstring of :mod:`hetfl.wire`.

    Args:
        update: dense or sparse, in float16, float32 or float64, on any device.
        round: the round's number, below 2**32.
        client: the client's id, below 2**64.
        half_precision: send the values as float16; the exact block keeps its dtype.

    Raises:
        ValueError: what the receiver would refuse: values that are not finite (or are no longer, as float16), indices
            that are not strictly increasing in [0, D), a dtype without a code.
        TypeError: an update of another class.
    """
    if not (0 <= round < 2**32 and 0 <= client < 2**64):
        raise ValueError(
            f"Expected round in [0, 2**32) and client in [0, 2**64) but got round {round}, client {client}"
        )
    if isinstance(update, SparseUpdate):
        kind, indices, values = Kind.SPARSE, _index_bytes(update, client), update.values
    elif isinstance(update, DenseUpdate):
        kind, indices, values = Kind.DENSE, np.empty(0, dtype=np.uint8), update.values
    else:
        raise TypeError(
            f"Expected a DenseUpdate or a SparseUpdate from client {client} but got {type(update).__name__}"
        )
    dtype = torch.float16 if half_precision else values.dtype
    exact_dtype = update.exact.dtype if update.exact.numel() else torch.float32
    if dtype not in DTYPES or exact_dtype not in DTYPES[1:]:
        raise ValueError(
            f"Expected client {client}'s values in {DTYPES} and exact block in {DTYPES[1:]} but got "
            f"{dtype}, {exact_dtype}"
        )
    body = [
        indices,
        _finite_array(values, dtype, "values", client),
        _finite_array(update.exact, exact_dtype, "exact block", client),
    ]
    header = Header(
        magic=MAGIC,
        version=VERSION,
        kind=kind,
        dtype=DTYPES.index(dtype),
        exact_dtype=DTYPES.index(exact_dtype),
        round=round,
        client=client,
        size=update.size,
        num_sent=update.num_sent,
        num_exact=update.exact.numel(),
        index_bytes=indices.size,
    )
    return b"".join([header.pack(body), *(part.data for part in body)])


def _index_bytes(update: SparseUpdate, client: int) -> NDArray[np.uint8]:
    indices = update.indices.cpu().numpy()
    if indices.size != update.values.numel():
        raise ValueError(
            f"Expected client {client} to send {indices.size} values, one per index, but got {update.values.numel()}"
        )
    if indices.size and (indices[0] < 0 or indices[-1] >= update.length or bool((indices[1:] <= indices[:-1]).any())):
        raise ValueError(
            f"Expected client {client}'s indices to increase strictly in [0, {update.length}) but got others"
        )
    return encode_indices(indices)


def _finite_array(values: Tensor, dtype: torch.dtype, what: str, client: int) -> NDArray[Any]:
    sent = values.detach().to("cpu", dtype)
    if not bool(torch.isfinite(sent).all()):
        largest = float(values.detach().abs().max())
        raise RefusedUpdate(
            f"Expected client {client}'s {what} to be finite as {dtype} but got magnitudes up to {largest:g}"
        )
    array: NDArray[Any] = sent.contiguous().numpy()
    return array.astype(NUMPY_DTYPES[dtype], copy=False)
