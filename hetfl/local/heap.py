"""Keeps freed memory in the process, for its next tensors."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's settings in ``malloc.h``."""

LARGEST_BLOCK = 32 * 2**20
"""Blocks of at least so many bytes are mapped separately, and returned when they are freed: glibc's largest value."""

LARGEST_REST = 2**31 - 1
"""Freed bytes at the end of the heap that the process keeps: the largest value of an ``int``."""


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next tensors, where the C library is glibc.

    Every step allocates and frees activations and gradients. By default glibc returns the free end of its heap to the
    system between steps, and the system then maps and clears every page again. The drawback is that the process never
    gets smaller.

    Returns:
        Whether the setting was changed. It is not changed where the C library has no such setting, or where the
        environment sets the allocator's options (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES`` and the like).
    """
    set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_by_user or mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_REST)) and bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK))
