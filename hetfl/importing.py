"""Imports of many modules at once, and long work beside many objects, without the garbage collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

AT_START = gc.get_freeze_count()
"""Number of objects that were frozen before: Python 3.12 begins with some."""


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
        if gc.get_freeze_count() <= AT_START:
            # At the end frozen objects would stay, and a library of torch prints a page about instances that leaked.
            atexit.register(gc.unfreeze)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return module


@contextmanager
def earlier_objects_frozen() -> Iterator[None]:
    """Exclude all earlier objects from garbage collection, unless the process has frozen objects already.

    Imports leave half a million objects. Python starts a full collection only when the new objects are a quarter of the
    old ones, so without this garbage would accumulate over hundreds of rounds. Where the objects of the imports are
    frozen, what is left is small, and a collection of it would be repeated at every start.
    """
    if gc.get_freeze_count() > AT_START:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
