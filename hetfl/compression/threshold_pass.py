"""Add the residual, compare with the threshold, collect what reaches it, keep the rest: in one pass over memory.

The plain version says what is computed. The fused one needs numba (``pip install hetfl[fast]``) and float32 on the CPU,
and returns the same bits; it is used for long vectors.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hetfl.updates import SparseUpdate

SHORTEST = 1 << 18
"""Entries from which on the fused pass is worth its call."""


class Split(NamedTuple):
    """A vector p = Δ + e, divided.

    Attributes:
        indices: int64, shape (k,), strictly increasing: where |p_i| ≥ λ and p_i ≠ 0.
        values: shape (k,): p there.
        left_D: shape (D,): p elsewhere, and 0 there.
        finite: whether p holds neither NaN nor Inf; else the rest is not to be used.
    """

    indices: Tensor
    values: Tensor
    left_D: Tensor
    finite: bool


def split(delta_D: Tensor, residual_D: Tensor | None, threshold: float, out: Tensor | None = None) -> Split:
    """Divide Δ + e at a threshold, by the fused pass where that is possible and worth it.

    Args:
        delta_D: Δ, shape (D,); not modified.
        residual_D: e, shape (D,); None: 0.
        threshold: λ ≥ 0, compared in the dtype of Δ.
        out: shape (D,); the fused pass puts ``left_D`` there: memory that is new takes longer than the pass.
    """
    if is_fused(delta_D):
        return split_fused(delta_D, residual_D, threshold, out)
    return split_plain(delta_D, residual_D, threshold)


def is_fused(delta_D: Tensor) -> bool:
    """Return whether a vector is long enough for the fused pass, and of its kind."""
    kind = delta_D.device.type == "cpu" and delta_D.dtype == torch.float32
    return kind and delta_D.numel() >= SHORTEST and has_numba()


def as_update(parts: Split, half_precision: bool) -> tuple[SparseUpdate, Tensor]:
    """Return what is sent, and what is left; as float16 values lose bits, which are left too."""
    if half_precision:
        parts.left_D[parts.indices] = parts.values - parts.values.half().to(parts.values.dtype)
    return SparseUpdate(parts.values, parts.indices, parts.left_D.numel()), parts.left_D


def split_plain(delta_D: Tensor, residual_D: Tensor | None, threshold: float) -> Split:
    """Divide Δ + e at a threshold, operation by operation, on any device and in any dtype; see :func:`split`."""
    p_D = delta_D if residual_D is None else delta_D + residual_D
    reached_D = (p_D.abs() >= threshold) & (p_D != 0)
    indices = reached_D.nonzero().squeeze(1)
    left_D = p_D.masked_fill(reached_D, 0.0)
    return Split(indices, p_D[indices], left_D, bool(torch.isfinite(p_D).all()))


def split_fused(delta_D: Tensor, residual_D: Tensor | None, threshold: float, out: Tensor | None = None) -> Split:
    """Divide Δ + e at a threshold in one pass: float32 on the CPU; see :func:`split`."""
    kernels = _kernels()
    delta = delta_D.detach().contiguous().numpy()
    residual = delta if residual_D is None else residual_D.detach().contiguous().numpy()  # not read if None
    left = np.empty_like(delta) if out is None else out.numpy()
    # The least magnitude above 0 stands for 0: entries that are 0 are never sent.
    with np.errstate(over="ignore"):  # a threshold beyond float32 is Inf there, which nothing finite reaches
        bits = np.maximum(np.float32(threshold).view(np.uint32), np.uint32(1))
    parts, start, capacity = [], 0, kernels.BLOCK + delta.size // 64
    while start < delta.size:
        indices, values = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.float32)
        start, found, finite = kernels.split(
            delta, residual, residual_D is not None, bits, left, indices, values, start
        )
        if not finite:
            return Split(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.from_numpy(left), False)
        parts.append((indices[:found], values[:found]))
        capacity *= 4
    if len(parts) == 1:
        indices, values = parts[0]
    else:
        indices = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64)
        values = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, dtype=np.float32)
    return Split(torch.from_numpy(indices), torch.from_numpy(values), torch.from_numpy(left), True)


@cache
def has_numba() -> bool:
    """Return whether the fused pass can be compiled."""
    return importlib.util.find_spec("numba") is not None


@cache
def _kernels() -> Any:
    from hetfl.compression import kernels

    return kernels
