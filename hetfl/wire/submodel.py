"""The message of a coded sub-model: a rotation, then a dense message with codes and an exact block."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.rotation import MOST_LOG, Rotation
from hetfl.updates import DenseUpdate
from hetfl.wire.decoding import Expected, decode
from hetfl.wire.encoding import encode
from hetfl.wire.malformed import MalformedPayload, Reason

_HEAD = struct.Struct("<B3sQ")


@dataclass(frozen=True)
class Submodel:
    """The decoded values of a sub-model.

    Attributes:
        values_D: decoded values of the coded entries, shape (D,).
        exact: uncoded entries.
    """

    values_D: Tensor
    exact: Tensor


def encode_submodel(update: DenseUpdate, rotation: Rotation | None, *, round: int, model: int) -> bytes:
    """Return the bytes of a sub-model; their layout is in ``docs/wire.md``.

    Args:
        update: codes of the entries, or of the rotated ones; and an exact block.
        rotation: how the entries were rotated before they were coded; None: they were not.
        round: the round's number, below 2**32.
        model: number of the global model, below 2**64.

    Raises:
        ValueError: as :func:`hetfl.wire.encode` does.
    """
    head = _HEAD.pack(0, b"", 0) if rotation is None else _HEAD.pack(rotation.log, b"", rotation.seed)
    return head + encode(update, round=round, client=model)


def decode_submodel(data: bytes, expected: Expected) -> Submodel:
    """Return the sub-model of some bytes.

    Args:
        data: the bytes.
        expected: what the receiver knows, with the layout of the coded entries; its client is the model's number.

    Raises:
        MalformedPayload: they are no sub-model of this layout.
    """
    if len(data) < _HEAD.size:
        raise MalformedPayload(Reason.LENGTH, f"Expected at least {_HEAD.size} bytes but got {len(data)}")
    log, reserved, seed = _HEAD.unpack_from(data)
    if log > MOST_LOG or any(reserved) or (seed and not log):
        raise MalformedPayload(Reason.FORMAT, f"Expected a rotation but got {data[: _HEAD.size].hex()}")
    update = decode(data[_HEAD.size :], expected)
    if not isinstance(update, DenseUpdate):
        raise MalformedPayload(Reason.FORMAT, f"Expected a dense message but got {type(update).__name__}")
    values_D = update.values
    if log:
        sizes = (expected.size,) if expected.layout is None else expected.layout.sizes
        values_D = Rotation(log, seed).back(values_D, sizes).float().to(expected.dtype)
        if not bool(torch.isfinite(values_D).all()):
            raise MalformedPayload(Reason.VALUES, "Expected finite values but got a rotation that overflows")
    return Submodel(values_D, update.exact)
