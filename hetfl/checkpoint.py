"""Checkpoints that survive: written whole or not at all, checked by a digest, with the ones before kept.

The file is torch's own (a zip archive, readable by ``torch.load(path, weights_only=True)``); its digest stands in the
archive's comment, which readers of the archive pass over.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.errors import ConfigurationError

MARK = b"hetfl blake2b "
DIGEST_BYTES = 32
COMMENT_BYTES = len(MARK) + 2 * DIGEST_BYTES
END_OF_ARCHIVE = b"PK\x05\x06"
END_BYTES = 22
"""Length of a zip archive's end record without comment; its last two bytes are the comment's length."""


def seal(archive: bytes) -> bytes:
    """Return a zip archive with the digest of its bytes as its comment.

    Raises:
        ValueError: the bytes are no zip archive without comment.
    """
    end = len(archive) - END_BYTES
    if archive[end : end + 4] != END_OF_ARCHIVE or archive[-2:] != b"\0\0":
        raise ValueError("Expected a zip archive without comment but got other bytes")
    body = archive[:-2] + struct.pack("<H", COMMENT_BYTES)
    return body + MARK + hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest().encode()


def damage(data: bytes) -> str | None:
    """Return what is wrong with a sealed archive; None if it is as it was written."""
    if len(data) <= COMMENT_BYTES or data[-COMMENT_BYTES : -COMMENT_BYTES + len(MARK)] != MARK:
        return f"no digest at the end of its {len(data)} bytes"
    digest = hashlib.blake2b(data[:-COMMENT_BYTES], digest_size=DIGEST_BYTES).hexdigest().encode()
    return (
        None
        if digest == data[-2 * DIGEST_BYTES :]
        else f"its {len(data)} bytes do not have the digest written with them"
    )


def previous(path: Path, age: int) -> Path:
    """Return the name under which the checkpoint of ``age`` saves ago is kept: ``last.1.ckpt`` beside ``last.ckpt``."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


class SafeCheckpointIO(CheckpointIO):
    """Writes beside the target, flushes to the disk, then renames; keeps the last checkpoints.

    A full disk or another failure to write is a warning: the checkpoint before stays, and training goes on.

    Args:
        keep: how many checkpoints of one name there are, the newest included.

    Raises:
        ConfigurationError: fewer than one is to be kept.
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigurationError(f"Expected keep of at least 1 but got {keep}")
        self.keep = keep

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; afterwards either it or the one before is under ``path``, whole."""
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            self._write(target, seal(buffer.getvalue()))
        except OSError as error:
            rank_zero_warn(f"Checkpoint {target} not written ({error}); the one before is kept, training goes on")

    def _write(self, target: Path, data: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                self._keep_previous(target)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _keep_previous(self, target: Path) -> None:
        """Give the checkpoints one place back; each name changes in one step, and ``target`` stays until replaced."""
        for age in range(self.keep - 1, 0, -1):
            newer, older = previous(target, age - 1), previous(target, age)
            if newer.exists():
                link = older.with_name(f"{older.name}.tmp")
                link.unlink(missing_ok=True)
                try:
                    os.link(newer, link)
                    os.replace(link, older)
                finally:
                    link.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the newest whole checkpoint of a name.

        Raises:
            ConfigurationError: none of them can be read.
        """
        target, reasons = Path(path), []
        for age in range(max(self.keep, 2)):
            candidate = previous(target, age)
            try:
                data = candidate.read_bytes()
            except OSError as error:
                reasons.append(f"{candidate}: {error.strerror}")
                continue
            wrong = damage(data)
            if wrong is None:
                if reasons:
                    rank_zero_warn(f"Checkpoint {'; '.join(reasons)}; taking {candidate}")
                location = map_location if map_location is not None else "cpu"
                return torch.load(io.BytesIO(data), map_location=location, weights_only=True)  # type: ignore[no-any-return]  # noqa: TID251
            reasons.append(f"{candidate} is damaged ({wrong})")
        raise ConfigurationError(f"Expected a whole checkpoint but got none: {'; '.join(reasons)}")

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint and those kept before it."""
        for age in range(self.keep):
            previous(Path(path), age).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last: the folder is a file of its own to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
