"""Seeds in place of the positions and the mask that they draw, where a part's recipe has them.

A record has the CRC-32 of the block that it stands for. So a receiver whose generator draws something else refuses it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hetfl.recipe import Recipe, draw_mask, draw_positions
from hetfl.wire.bits import Bytes, Integers
from hetfl.wire.indices import encode_indices
from hetfl.wire.malformed import MalformedPayload, Reason

SEEDED = 254
"""First byte of a block of seeded positions: below it are Rice parameters, above it is the byte of runs."""

POSITIONS = struct.Struct("<BQI")
"""The first byte, the seed, and the CRC-32 of the block of the positions."""

MASK = struct.Struct("<QfI")
"""The seed, the one density, and the CRC-32 of the bits of the tensors that are drawn."""

_SEEDS = 2**63


def encode_positions(positions: Integers, of: int, recipe: Recipe | None) -> bytes:
    """Return the block of rising positions: their indices, or the seed that draws them if that is shorter.

    Args:
        positions: int64, shape (k,).
        of: how many positions there are.
        recipe: of the part.
    """
    listed = encode_indices(positions).tobytes()
    seed = None if recipe is None else recipe.channels.get(of)
    if seed is None or len(listed) <= POSITIONS.size:
        return listed
    alike = np.array_equal(draw_positions(seed, positions.size, of).numpy(), positions)
    return POSITIONS.pack(SEEDED, seed, zlib.crc32(listed)) if alike else listed


def decode_positions(block: bytes, held: int, of: int) -> Tensor:
    """Return the positions of a block that begins with :data:`SEEDED`, int64, shape (held,).

    Raises:
        MalformedPayload: it has another length, the seed is out of range, or it draws other positions than it did.
    """
    if len(block) != POSITIONS.size:
        raise MalformedPayload(Reason.LENGTH, f"Expected a seed in {POSITIONS.size} bytes but got {len(block)}")
    _, seed, checksum = POSITIONS.unpack(block)
    positions = draw_positions(_checked(seed), held, of)
    _compare(checksum, encode_indices(positions.numpy()).tobytes())
    return positions


def layered(drawn: Sequence[bool]) -> struct.Struct:
    """Return the record of a mask whose tensors have densities of their own: the seed, these, and the CRC-32."""
    return struct.Struct(f"<Q{sum(drawn)}fI")


def encode_mask(
    mask_D: Tensor, sizes: Sequence[int], names: Sequence[str], recipe: Recipe | None
) -> tuple[bool, bytes] | None:
    """Return whether tensors have densities of their own, and a record; None if no record draws the mask.

    The record begins with a flag per tensor, whether it is held whole.

    Args:
        mask_D: bool, shape (D,).
        sizes: entries of each tensor, D in all.
        names: of the tensors.
        recipe: of the part.
    """
    if recipe is None or recipe.mask is None:
        return None
    seed, densities = recipe.mask.seed, recipe.mask.of(names)
    if not torch.equal(draw_mask(seed, densities, sizes), mask_D):
        return None
    drawn = [density != 1.0 for density in densities]
    of_drawn = [density for density in densities if density != 1.0]
    several = len(set(of_drawn)) > 1
    record = layered(drawn) if several else MASK
    checksum = zlib.crc32(_bits(mask_D, sizes, drawn))
    coded = record.pack(seed, *(of_drawn if several else of_drawn[:1]), checksum) if of_drawn else b""
    in_range = all(0.0 < float32 < 1.0 for float32 in np.array(of_drawn, dtype=np.float32))
    return (several, np.packbits(~np.array(drawn, dtype=bool)).tobytes() + coded) if coded and in_range else None


def decode_mask(coded: bytes, sizes: Sequence[int], drawn: Sequence[bool], several: bool) -> Tensor:
    """Return the mask that a record without its flags draws, bool, shape (D,).

    Args:
        coded: the bytes.
        sizes: entries of each tensor, D in all.
        drawn: whether each tensor is drawn; the others are held whole.
        several: whether the drawn tensors have densities of their own.

    Raises:
        MalformedPayload: the seed or a density is out of range, or they draw another mask than the sender's.
    """
    seed, *densities, checksum = (layered(drawn) if several else MASK).unpack(coded)
    for density in densities:
        if not 0.0 < density < 1.0:
            raise MalformedPayload(Reason.VALUES, f"Expected a density between 0 and 1 but got {density:g}")
    of_drawn = iter(densities if several else densities * sum(drawn))
    mask_D = draw_mask(_checked(seed), [next(of_drawn) if each else 1.0 for each in drawn], sizes)
    _compare(checksum, _bits(mask_D, sizes, drawn))
    return mask_D


def _bits(mask_D: Tensor, sizes: Sequence[int], drawn: Sequence[bool]) -> bytes:
    """Return the bits of the drawn tensors, in full bytes."""
    masks = [mask.numpy() for mask, each in zip(mask_D.split(list(sizes)), drawn, strict=True) if each]
    bits: Bytes = np.packbits(np.concatenate([np.empty(0, dtype=bool), *masks]))
    return bits.tobytes()


def _checked(seed: int) -> int:
    if seed >= _SEEDS:
        raise MalformedPayload(Reason.VALUES, f"Expected a seed below {_SEEDS} but got {seed}")
    return seed


def _compare(checksum: int, drawn: bytes) -> None:
    if zlib.crc32(drawn) != checksum:
        raise MalformedPayload(Reason.CHECKSUM, "Expected a seed that draws what the sender drew but it draws another")
