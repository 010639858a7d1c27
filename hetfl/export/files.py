"""Checks of the target of an export."""

from __future__ import annotations

import os
from pathlib import Path

from hetfl.errors import ConfigurationError


def check_target(path: Path) -> None:
    """Refuse a path where no file can be written.

    Raises:
        ConfigurationError: the path is a folder, lies below a file, or lies in a read-only folder.
    """
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise ConfigurationError(f"Expected a file to write but got {path}, which is a folder")
    if not nearest.is_dir():
        raise ConfigurationError(f"Expected a file to write but got {path}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"Expected a file to write but got {path}: {nearest} is read-only")
