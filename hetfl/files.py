"""Atomic writes of files, which are complete or absent even if the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from hetfl.errors import ConfigurationError


def make_folder(folder: Path, what: str, shown: Path | None = None) -> Path:
    """Make a folder if it is absent, and return it.

    Args:
        folder: the folder; its parents are made too.
        what: text that completes "a folder to write ...", for the message.
        shown: the path that the message shows; None: the folder.

    Raises:
        ConfigurationError: the path, or a parent, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"Expected a folder to write {what} but got {shown or folder}: a file is there"
        ) from error
    return folder


@contextmanager
def replacing(target: Path) -> Iterator[BufferedWriter]:
    """Open a temporary file, which replaces the target if the block succeeds and is deleted otherwise.

    The temporary file is always a new one: a link of its name, in a folder of somebody else, is not followed. The
    folder is made if absent. Work that must happen after the bytes are on the disk and before the target changes
    belongs at the end of the block, after :func:`to_disk`.

    Yields:
        The temporary file, open for writing; ``file.name`` is its path.

    Raises:
        OSError: the file cannot be written; the error names a file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            yield file
            to_disk(file)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a failed write does not name its file
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(file: BufferedWriter) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(target: Path, data: bytes) -> None:
    """Write a file atomically and flush it to the disk; its folder is made if absent.

    Raises:
        OSError: the file cannot be written; the error names a file.
    """
    with replacing(target) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a rename in it is permanent."""
    sync(folder)


def sync(path: Path) -> None:
    """Flush what was written to a file, or the names in a folder, to the disk.

    Raises:
        OSError: the path is not there, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
