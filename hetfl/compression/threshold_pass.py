"""Add the residual, compare with the threshold, collect what reaches it, keep the rest: in one pass over memory.

It returns the bits that :meth:`hetfl.compression.base.Compressor.split` computes operation by operation. It needs numba
(``pip install hetfl[fast]``) and float32 on the CPU, and is used for long vectors.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hetfl import compiled

SHORTEST = 1 << 18
"""Entries from which on the fused pass is worth its call."""


class Parts(NamedTuple):
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


def is_fused(delta_D: Tensor) -> bool:
    """Return whether a vector is long enough for the fused pass, and of its kind."""
    kind = delta_D.device.type == "cpu" and delta_D.dtype == torch.float32
    return kind and delta_D.numel() >= SHORTEST and compiled.has_numba()


def new_buffer(size: int) -> Tensor:
    """Return memory for what is left of a vector, float32, shape (size,).

    It is NumPy's, which asks for large pages from 4 MiB on: new memory in small ones takes longer than the pass.
    """
    return torch.from_numpy(np.empty(size, dtype=np.float32))


def split_fused(delta_D: Tensor, residual_D: Tensor | None, threshold: float, out: Tensor | None = None) -> Parts:
    """Divide Δ + e at a threshold in one pass.

    Args:
        delta_D: Δ, shape (D,), float32 on the CPU; not modified.
        residual_D: e, shape (D,); None: 0.
        threshold: λ ≥ 0, compared in float32.
        out: shape (D,), takes ``left_D``; None: new memory.
    """
    kernels = _kernels()
    delta = delta_D.detach().contiguous().numpy()
    residual = delta if residual_D is None else residual_D.detach().contiguous().numpy()  # not read if None
    # The tensor itself is handed back: one around its array would be an owner more of the memory every time.
    left_D = new_buffer(delta.size) if out is None else out
    left = left_D.numpy()
    # The least magnitude above 0 stands for 0: entries that are 0 are never sent.
    with np.errstate(over="ignore"):  # a threshold beyond float32 is Inf there, which nothing finite reaches
        bits = np.maximum(np.float32(abs(threshold)).view(np.uint32), np.uint32(1))  # abs: -0.0 is allowed, and is 0
    parts, start, total, capacity = [], 0, 0, kernels.BLOCK + delta.size // 64
    while start < delta.size:
        indices, values = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.float32)
        start, found, finite = kernels.split(
            delta, residual, residual_D is not None, bits, left, indices, values, start
        )
        if not finite:
            return Parts(torch.empty(0, dtype=torch.int64), torch.empty(0), left_D, False)
        parts.append((indices[:found], values[:found]))
        total += found
        # There was room for a block at least; the rest is, as a rule, as dense as what has been seen.
        capacity = kernels.BLOCK + math.ceil(1.2 * (delta.size - start) * total / start)
    if len(parts) == 1:
        indices, values = parts[0]
    else:
        indices = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64)
        values = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, dtype=np.float32)
    return Parts(torch.from_numpy(indices), torch.from_numpy(values), left_D, True)


@cache
def _kernels() -> Any:
    from hetfl.compression import kernels

    return kernels
