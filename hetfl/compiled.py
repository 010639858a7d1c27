"""Whether loops can be compiled: numba is an extra (``pip install hetfl[fast]``), and everything works without it."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def has_numba() -> bool:
    """Return whether numba is there."""
    return importlib.util.find_spec("numba") is not None
