"""Checkpoints that survive: written whole or not at all, checked by a digest, with the ones before kept.

The file is torch's own (a zip archive, readable by ``torch.load(path, weights_only=True)``); its digest stands in the
archive's comment, which readers of the archive pass over.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.errors import ConfigurationError
from hetfl.files import replacing, to_disk
from hetfl.printable import printable

MARK = b"hetfl blake2b "
DIGEST_BYTES = 32
COMMENT_BYTES = len(MARK) + 2 * DIGEST_BYTES
END_OF_ARCHIVE = b"PK\x05\x06"
END_BYTES = 22
"""Length of a zip archive's end record without comment; its last two bytes are the comment's length."""
CHUNK_BYTES = 1 << 22
"""How much of a checkpoint is read at a time to compare its digest."""


class SealedFile:
    """Takes an archive as torch writes it, on to a file, and ends it with the digest of its bytes as its comment.

    What is written passes through: a checkpoint may be much larger than what memory is left. torch turns an error in a
    write into one of its own, which names neither the file nor the reason; so :meth:`seal` raises what a write met.

    Args:
        file: an empty file, open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._end = b""  # held back: the archive's last bytes say how long its comment is
        self._error: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Take the next bytes."""
        if len(data) < END_BYTES:
            joined = self._end + data
            self._pass_on(joined[:-END_BYTES])
            self._end = joined[-END_BYTES:]
        else:
            self._pass_on(self._end)
            self._pass_on(data[:-END_BYTES])
            self._end = bytes(data[-END_BYTES:])
        return len(data)

    def flush(self) -> None:
        """Do nothing: :meth:`seal` writes what is held back."""

    def seal(self) -> None:
        """Write the end of the archive.

        Raises:
            OSError: a write failed.
            ValueError: what was written is no zip archive without comment.
        """
        if self._error is None and (self._end[:4] != END_OF_ARCHIVE or self._end[-2:] != b"\0\0"):
            raise ValueError("Expected a zip archive without comment but got other bytes")
        self._pass_on(self._end[:-2] + struct.pack("<H", COMMENT_BYTES))
        self._pass_on(MARK + self._digest.hexdigest().encode())
        if self._error is not None:
            raise self._error

    def _pass_on(self, data: bytes | memoryview) -> None:
        try:
            if self._error is None:
                self._digest.update(data)
                self._file.write(data)
        except OSError as error:
            self._error = error


def damage(path: Path) -> str | None:
    """Return what is wrong with a sealed archive; None if it is as it was written.

    Raises:
        OSError: the file cannot be read.
    """
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        left = size - COMMENT_BYTES
        while left > 0 and (data := file.read(min(left, CHUNK_BYTES))):
            digest.update(data)
            left -= len(data)
        comment = file.read()
    if comment[: len(MARK)] != MARK or len(comment) != COMMENT_BYTES:
        return f"no digest at the end of its {size} bytes"
    if comment[len(MARK) :] != digest.hexdigest().encode():
        return f"its {size} bytes do not have the digest written with them"
    return None


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
        self.failed = False
        """Whether the last checkpoint could not be written."""
        self._readable = False
        self._damaged: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; afterwards either it or the one before is under ``path``, whole."""
        target = Path(path)
        try:
            self._write(target, checkpoint)
            self.failed = False
            self._damaged.discard(target)
        except OSError as error:
            self.failed = True
            rank_zero_warn(
                f"Checkpoint {printable(target)} not written ({printable(error)}); the one before is kept, training "
                "goes on"
            )

    def _write(self, target: Path, checkpoint: dict[str, Any]) -> None:
        with replacing(target) as file:
            sealed = SealedFile(file)
            torch.save(checkpoint, sealed)  # type: ignore[arg-type]
            sealed.seal()
            to_disk(file)
            self._check_readable(Path(file.name))
            if target.exists():
                self._keep_previous(target)

    def _check_readable(self, written: Path) -> None:
        """Read the first checkpoint back: what a callback keeps in its state may be nothing that can be read.

        Raises:
            ConfigurationError: it cannot be read.
        """
        if not self._readable:
            _read(written, "cpu")
            self._readable = True

    def _keep_previous(self, target: Path) -> None:
        """Give the checkpoints one place back; each name changes in one step, and ``target`` stays until replaced.

        One that was found to be damaged takes no other's place.
        """
        for age in range(self.keep - 1, 0, -1):
            newer, older = previous(target, age - 1), previous(target, age)
            if newer.exists() and newer not in self._damaged:
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
                wrong = damage(candidate)
            except OSError as error:
                reasons.append(f"{candidate}: {error.strerror}")
                continue
            if wrong is None:
                if reasons:
                    rank_zero_warn(f"Checkpoint {printable('; '.join(reasons))}; taking {printable(candidate)}")
                return _read(candidate, map_location if map_location is not None else "cpu")
            self._damaged.add(candidate)
            reasons.append(f"{candidate} is damaged ({wrong})")
        raise ConfigurationError(f"Expected a whole checkpoint but got none: {'; '.join(reasons)}")

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint and those kept before it."""
        for age in range(self.keep):
            previous(Path(path), age).unlink(missing_ok=True)


def _read(path: Path, location: Any) -> dict[str, Any]:
    """Return the content of an intact archive.

    Raises:
        ConfigurationError: it holds what cannot be read without running its code, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location=location, weights_only=True)  # noqa: TID251
    except Exception as error:  # of the unpickler, of many kinds
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigurationError(
            f"Expected a checkpoint of plain values and tensors but got {path} with others (in a callback's state?): "
            f"{reason[:200]}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"Expected a checkpoint in {path} but got a {type(content).__name__}")
    return content
