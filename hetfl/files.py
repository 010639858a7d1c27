"""Files that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from hetfl.errors import ConfigurationError


def make_folder(folder: Path, what: str, shown: Path | None = None) -> Path:
    """Return a folder that is there now.

    Args:
        folder: to be made if absent, with those above it.
        what: is to be written there, in words.
        shown: what the user named; None: the folder.

    Raises:
        ConfigurationError: a file is in the way.
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
    """Open a file beside its target; it replaces the target, on the disk, if the block succeeds, and else goes away.

    The folder is made if absent. What must happen once the bytes are safe and before the target changes belongs at the
    end of the block, behind :func:`to_disk`.

    Yields:
        The file, to be written; ``file.name`` is where it is meanwhile.

    Raises:
        OSError: it cannot be written; names a file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            to_disk(file)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(file: BufferedWriter) -> None:
    """Pass what was written on to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(target: Path, data: bytes) -> None:
    """Write a file, its folder too if absent: whole and on the disk, or not at all.

    Raises:
        OSError: it cannot be written; names a file.
    """
    with replacing(target) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    """Make a rename last: a folder is a file of its own to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
