"""The lock of a run folder, which keeps other processes from writing into it."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from hetfl.errors import ConfigurationError


class FileLock:
    """A locked file, until its last user in this process has forgotten it or the process ends.

    A process loses its lock on a file when it closes any descriptor of the file. So all users share one descriptor.

    Args:
        descriptor: of the file; closed with the lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def is_at(self, path: Path) -> bool:
        """Return whether a path is the locked file, and not another one that replaced it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False


_LOCKS: weakref.WeakValueDictionary[tuple[int, int, int], FileLock] = weakref.WeakValueDictionary()


def lock_file(path: Path) -> FileLock:
    """Lock a file in a run folder, and make it if it is absent; warn if its disk has no locks.

    Raises:
        ConfigurationError: another process has locked the file.
    """
    known = _LOCKS.get(_key(path.stat())) if path.exists() else None
    if known is not None:
        return known
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # forked workers do not inherit this lock
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise ConfigurationError(
                f"Expected a run folder that no other process uses but got {path.parent}, to which another process "
                "writes"
            ) from None
        rank_zero_warn(f"Run folder {path.parent} not locked ({error.strerror}): no other process may write to it")
    return _LOCKS.setdefault(_key(os.fstat(descriptor)), FileLock(descriptor))


def _key(file: os.stat_result) -> tuple[int, int, int]:
    """Return what identifies a file in this process; a forked process has inherited no lock."""
    return os.getpid(), file.st_dev, file.st_ino
