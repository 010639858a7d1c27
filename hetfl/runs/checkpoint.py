"""Atomic checkpoints with a digest; earlier checkpoints are kept.

The file has torch's format (a zip archive, readable by ``torch.load(path, weights_only=True)``). The digest is in the
comment of the archive, which other readers ignore.
"""

from __future__ import annotations

import hashlib
import os
import shutil
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
from hetfl.reading import TooMuch
from hetfl.runs.content import check_content, check_records, check_state

LAST = "last.ckpt"
"""Name of the checkpoint from which a run is resumed."""
MARK = b"hetfl blake2b "
DIGEST_BYTES = 32
COMMENT_BYTES = len(MARK) + 2 * DIGEST_BYTES
END_OF_ARCHIVE = b"PK\x05\x06"
END_BYTES = 22
"""Length of the end record of a zip archive without comment; its last two bytes are the length of the comment."""
CHUNK_BYTES = 1 << 22
"""Number of bytes that are read at a time to compute a digest."""


class SealedFile:
    """A file object that writes torch's archive to a file and adds a comment with the digest of its bytes.

    Bytes are not buffered, because a checkpoint may be larger than the free memory. torch replaces an error of a write
    by an error without the file and the reason. Therefore :meth:`seal` raises the original error.

    Args:
        file: an empty file, open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._end = b""  # not written yet: the last bytes of the archive have the length of its comment
        self._error: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Write the next bytes, except the last :data:`END_BYTES`."""
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
        """Do nothing: :meth:`seal` writes the remaining bytes."""

    def seal(self) -> None:
        """Write the end of the archive and the comment.

        Raises:
            OSError: a write failed.
            ValueError: the bytes are not a zip archive without comment.
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
    """Return the kind of damage of a sealed archive; None if it is intact.

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
    """Return the path of the checkpoint of ``age`` saves ago: ``last.1.ckpt`` for ``last.ckpt`` and 1."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


class SafeCheckpointIO(CheckpointIO):
    """Writes to a temporary file, flushes it to the disk, and renames it; keeps the last checkpoints.

    A full disk or another write error is only a warning: the previous checkpoint stays, and training continues.

    Args:
        keep: number of checkpoints of one name that are kept, including the newest.

    Raises:
        ConfigurationError: ``keep`` is below 1.
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigurationError(f"Expected keep of at least 1 but got {keep}")
        self.keep = keep
        self.failed = False
        """Whether the last checkpoint could not be written."""
        self.confirmed = True
        """Whether the last one with the state of training was, and is :data:`LAST`, if there are any of this name."""
        self._has_last = self._readable = False
        self._damaged: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; afterwards ``path`` is the whole new checkpoint or the whole previous one."""
        target = Path(path)
        try:
            self._write(target, checkpoint)
            self.failed = False
            self._damaged.discard(target)
        except OSError as error:
            self.failed = True
            rank_zero_warn(
                f"Checkpoint {printable(target)} not written ({printable(error)}); the previous checkpoint is kept, "
                "training goes on"
            )
        self._has_last |= target.name == LAST
        if "optimizer_states" in checkpoint:  # not of weights only, as ModelCheckpoint(save_weights_only=True) asks for
            self.confirmed = not self.failed and (target.name == LAST or not self._has_last)

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
        """Read the first checkpoint, because the state of a callback may contain values that cannot be loaded.

        Raises:
            ConfigurationError: the checkpoint cannot be read.
        """
        if not self._readable:
            _read(written, "cpu")
            self._readable = True

    def _keep_previous(self, target: Path) -> None:
        """Rename each kept checkpoint to the next age; every rename is atomic, and ``target`` also keeps its name.

        A checkpoint that is known to be damaged does not replace an older one.
        """
        for age in range(self.keep - 1, 0, -1):
            newer, older = previous(target, age - 1), previous(target, age)
            if newer.exists() and newer not in self._damaged:
                link = older.with_name(f"{older.name}.tmp")
                link.unlink(missing_ok=True)
                try:
                    if _linked(newer, link):
                        os.replace(link, older)
                        self._damaged.discard(older)
                finally:
                    link.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the newest intact checkpoint of a name.

        Raises:
            ConfigurationError: no checkpoint of the name can be read.
        """
        target, reasons = Path(path), []
        self._has_last |= target.name == LAST
        for age in range(max(self.keep, 2)):
            candidate = previous(target, age)
            try:
                wrong = damage(candidate)
            except OSError as error:
                reasons.append(f"{candidate}: {error.strerror}")
                continue
            if wrong is None:
                if reasons:
                    rank_zero_warn(f"Checkpoint {printable('; '.join(reasons))}; using {printable(candidate)}")
                return _read(candidate, map_location if map_location is not None else "cpu")
            self._damaged.add(candidate)
            reasons.append(f"{candidate} is damaged ({wrong})")
        raise ConfigurationError(f"Expected a whole checkpoint but got none: {'; '.join(reasons)}")

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint and the kept older ones of its name."""
        for age in range(self.keep):
            previous(Path(path), age).unlink(missing_ok=True)

    def drop_previous(self, path: str | os.PathLike[str]) -> None:
        """Remove the kept older checkpoints of a name at the end of its run, if the newest one is intact.

        They are there for a newest one that a crash damages while it is written.
        """
        target = Path(path)
        older = [each for age in range(1, self.keep) if (each := previous(target, age)).is_file()]
        if older and target.is_file() and damage(target) is None:
            for each in older:
                each.unlink(missing_ok=True)


def _linked(newer: Path, link: Path) -> bool:
    """Give a checkpoint a second name, or copy it where there are no hard links; return False if neither can be."""
    try:
        os.link(newer, link)
    except OSError:  # exFAT, vfat, SMB, some FUSE
        try:
            shutil.copyfile(newer, link)
            with link.open("ab") as file:
                to_disk(file)
        except OSError as error:
            rank_zero_warn(f"Checkpoint {printable(newer)} not kept ({printable(error)}); the new one replaces it")
            return False
    return True


def _read(path: Path, location: Any) -> dict[str, Any]:
    """Return the content of an intact archive.

    Raises:
        ConfigurationError: the archive has values that can be read only by running code, declares more memory than it
            has bytes, or is not a checkpoint.
    """
    try:
        check_records(path)
        content = torch.load(path, map_location=location, weights_only=True)  # noqa: TID251
        check_content(content, path.stat().st_size)
    except TooMuch as error:
        raise error.inside(path) from None
    except Exception as error:  # the unpickler raises many kinds of errors
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigurationError(
            f"Expected a checkpoint of plain values and tensors but got {path} with others (state of a callback?): "
            f"{reason[:200]}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"Expected a checkpoint in {path} but got a {type(content).__name__}")
    if "hetfl" in content:
        check_state(content["hetfl"])
    return content
