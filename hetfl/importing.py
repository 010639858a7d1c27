"""Imports of many modules at once, without the garbage collector."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import a module; if it is new, exclude all present objects from garbage collection.

    PyTorch and Lightning make half a million objects, of which none is garbage. Collections while they are made take a
    fifth of the time of the import.

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
