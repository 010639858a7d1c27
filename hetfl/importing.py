"""Imports of many modules at once, without the garbage collector."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import a module; if it is new, exclude all present objects from garbage collection.

    The imports of PyTorch and Lightning make half a million objects, and none of them is garbage. Collections would
    look at all of them again and again.

    Args:
        name: the module's name.
    """
    if name in sys.modules:
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return module
