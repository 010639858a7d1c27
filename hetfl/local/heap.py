"""What becomes of memory that tensors give back."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, as ``malloc.h`` has them."""

LARGEST_BLOCK = 32 * 2**20
"""Bytes from which a block is mapped by itself, and given back when it is freed: the most that glibc takes."""

LARGEST_REST = 2**31 - 1
"""Freed bytes at the end of the heap that are kept: the most that an ``int`` can say."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors, where the C library is glibc.

    Activations and gradients are freed in every step and asked for again in the next. By default glibc hands the end of
    its heap back in between, unless something that lives longer happens to lie there, and the system maps and clears
    every page anew. The price is that a process does not get smaller again.

    Returns:
        Whether it was set: not where there is no such setting, nor where the environment has settings of its own
        (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES`` and the like).
    """
    set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_by_user or mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_REST)) and bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK))
