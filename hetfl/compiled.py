"""Shared by compiled loops: whether numba, an extra (``pip install hetfl[fast]``), is installed, and a bit table."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np

DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""A de Bruijn number: its 64 windows of 6 bits are all different, so the upper 6 bits of its product with 2^n fix n."""
POSITION_OF = np.empty(64, dtype=np.int64)
"""n by these 6 bits."""
POSITION_OF[[(int(DE_BRUIJN) << n & 2**64 - 1) >> 58 for n in range(64)]] = range(64)


@cache
def has_numba() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None
