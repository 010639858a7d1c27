"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetfl.errors import ConfigurationError


@contextmanager
def replacing(target: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside its target, on the disk and under another name; it replaces the target if the block succeeds.

    Yields:
        Where the file is meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(target)) from error
        yield temporary
        os.replace(temporary, target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename: a folder is a file of its own to the disk
        finally:
            os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


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
