"""What compiled loops share: whether there are any, as numba is an extra (``pip install hetfl[fast]``), and a table."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np

DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""Its 64 windows of 6 bits are all different: of its product with 2^n the upper 6 bits tell n."""
POSITION_OF = np.empty(64, dtype=np.int64)
"""n for each of these windows."""
POSITION_OF[[(int(DE_BRUIJN) << n & 2**64 - 1) >> 58 for n in range(64)]] = range(64)


@cache
def has_numba() -> bool:
    """Return whether numba is there."""
    return importlib.util.find_spec("numba") is not None
