"""Where an export can be written."""

from __future__ import annotations

import os
from pathlib import Path

from hetfl.errors import ConfigurationError


def check_target(path: Path) -> None:
    """Refuse a place where no file can be written.

    Raises:
        ConfigurationError: it is a folder, lies below a file, or in a folder that is read-only.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise ConfigurationError(f"Expected a file to write but got {path}, which is a folder")
    if not there.is_dir():
        raise ConfigurationError(f"Expected a file to write but got {path}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"Expected a file to write but got {path}: {there} is read-only")
