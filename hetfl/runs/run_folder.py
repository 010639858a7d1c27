"""A run's folder: ``config.yaml``, ``metrics.csv``, tables, ``checkpoints/``, as a Lightning logger.

Lightning's own CSV logger deletes the file of the run that it continues, and writes one row per call. Here a round is
one row, whatever the number of calls that report on it, and a continued run goes on below the rounds that it kept.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.printable import printable
from hetfl.runs.metrics_file import MetricsFile, encoded

LOCK = ".lock"
"""Name of the file that keeps other processes out of a run's folder."""
EARLY_END = "ended.txt"
"""Name of the file that says that a run ended by itself before its last round."""


def ended_early(folder: Path, done: int, asked: int) -> bool:
    """Return whether a run ended by itself after ``done`` of ``asked`` rounds, because its settings stop it early."""
    path = folder / EARLY_END
    return path.is_file() and path.read_bytes() == _early_end(done, asked)


def note_end(folder: Path, done: int, asked: int) -> None:
    """Note, where rounds are left, that a run ended by itself: for who reads its folder."""
    if done < asked and not ended_early(folder, done, asked):
        try:
            write_whole(folder / EARLY_END, _early_end(done, asked))
        except OSError as error:
            rank_zero_warn(f"{folder / EARLY_END} not written ({error.strerror})")


def _early_end(done: int, asked: int) -> bytes:
    return f"ended by its settings after {done} of {asked} rounds\n".encode()


class RunFolder(Logger):
    """The logger of a run: one new folder per run, one row of ``metrics.csv`` per round.

    The folder is made when it is first needed, by rank zero, as ``root/name/<date>_<time>``, with ``-2``, ``-3``, ...
    added when runs start within the same second. Checkpoints and the configuration go there too, through Lightning's
    defaults.

    Args:
        root: the folder of all runs.
        name: the folder, inside ``root``, of runs that belong together.
        folder: a run to continue instead; its ``metrics.csv`` is kept.

    While a process writes into the folder no other one can. A row that a full disk does not take is a warning; it is
    written when there is space.

    Raises:
        ConfigurationError: ``name`` is not the name of one folder; on first use: ``folder`` does not exist, is another
            process's, or holds a ``metrics.csv`` that this class did not write.
    """

    def __init__(self, root: str = "runs", name: str = "run", folder: str | None = None) -> None:
        super().__init__()
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise ConfigurationError(f"Expected the run's name to be the name of one folder but got {name!r}")
        self._parent = Path(root) / name
        self._continued = None if folder is None else Path(folder)
        self._metrics: MetricsFile | None = None
        self._waiting: list[tuple[int, dict[str, float]]] = []  # rows that the disk did not take
        self._whole: dict[str, bytes] = {}  # files that were written whole, by name

    @property
    def name(self) -> str:
        """Empty: Lightning then puts checkpoints right below the folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as the name is."""
        return ""

    @property
    @rank_zero_only
    def save_dir(self) -> str:
        """The run's folder; None on ranks other than zero, which write nothing."""
        return str(self._open().path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Merge metrics into the row of round ``step`` and write it.

        Raises:
            ValueError: ``step`` is not a round.
        """
        if step is None or step < 0:
            raise ValueError(f"Expected step to be a round, from 0, but got {step}")
        self._waiting.append((step, dict(metrics)))
        try:
            while self._waiting:
                self._open().add(*self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            path = printable(self._open().path)
            rank_zero_warn(f"Row {step} of {path} not written ({error.strerror}); training goes on")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in ``config.yaml``."""

    @rank_zero_only
    def declare(self, columns: Iterable[str]) -> None:
        """Have these columns in ``metrics.csv``, whether or not a round ever reports on them.

        Args:
            columns: their names; names of families, which end in a slash, are passed over.
        """
        self._open().declare(name for name in columns if not name.endswith("/"))

    @rank_zero_only
    def check_rounds(self, before_step: int) -> None:
        """Refuse to continue from a checkpoint of round ``before_step`` where rounds before it are missing.

        Raises:
            ConfigurationError: the folder to continue lacks them.
        """
        metrics = self._open()
        if self._continued is not None and metrics.last_step + 1 < before_step:
            raise ConfigurationError(
                f"Expected {before_step} rounds in {metrics.path}, as in the checkpoint, but got "
                f"{metrics.last_step + 1}: go on from an older checkpoint (--ckpt_path) and they are run again"
            )

    @rank_zero_only
    def truncate(self, before_step: int) -> None:
        """Forget the rounds from ``before_step`` on: what a run does that continues from a checkpoint of that round.

        Raises:
            ConfigurationError: the folder to continue lacks rounds before it.
        """
        self.check_rounds(before_step)
        self._open().truncate(before_step)

    @rank_zero_only
    def write_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write ``<name>.csv``, whole or not at all, over one that is there.

        Args:
            name: of the table.
            columns: their names.
            rows: cells, one per column; None is an empty cell.
        """
        cells = ([("" if cell is None else str(cell)) for cell in row] for row in rows)
        try:
            self.write_file(f"{name}.csv", b"".join(encoded(line) for line in (columns, *cells)))
        except OSError as error:
            rank_zero_warn(f"{printable(error.filename)} not written ({error.strerror})")

    @rank_zero_only
    def write_file(self, name: str, data: bytes) -> None:
        """Write a file into the folder, whole or not at all; if the folder is deleted it comes back with it.

        Raises:
            OSError: it cannot be written; names a file.
        """
        path = self._open().path.with_name(name)
        self._whole[name] = data
        write_whole(path, data)

    def _open(self) -> MetricsFile:
        if self._metrics is None:
            folder = self._new_folder() if self._continued is None else self._continued
            if not folder.is_dir():
                raise ConfigurationError(f"Expected the folder of a run to continue but got {str(folder)!r}")
            self._lock(folder)
            self._metrics = MetricsFile(folder / "metrics.csv")
        elif not _is_at(self._descriptor, self._metrics.path.with_name(LOCK)):
            self._make_anew(self._metrics.path.parent)
        return self._metrics

    def _lock(self, folder: Path) -> None:
        self._descriptor = _locked(folder)
        self._unlock = weakref.finalize(self, os.close, self._descriptor)

    def _make_anew(self, folder: Path) -> None:
        """Make a folder that was deleted meanwhile again, with all that is known of it, and say what is not.

        Raises:
            ConfigurationError: another process is in the folder that is there now.
            OSError: it cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._unlock()
        self._lock(folder)
        for name, data in self._whole.items():
            write_whole(folder / name, data)
        kept = ", ".join(self._whole) or "nothing"
        rank_zero_warn(
            f"Run folder {folder} was deleted while the run goes on: it is made anew, with {kept}; rows and files of "
            "earlier rounds are lost"
        )

    def _new_folder(self) -> Path:
        self._parent.mkdir(parents=True, exist_ok=True)
        started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        attempt = 1
        while True:
            folder = self._parent / (started if attempt == 1 else f"{started}-{attempt}")
            try:
                folder.mkdir()  # fails if it exists: two runs never share a folder
            except FileExistsError:
                attempt += 1
            else:
                return folder


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one under a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked(folder: Path) -> int:
    """Keep other processes out of a folder until the descriptor is closed, or this process ends.

    Raises:
        ConfigurationError: another process is in it.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process's own: forked workers do not hold it
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ConfigurationError(
            f"Expected a run folder for this process alone but got {folder}, in which another one is writing"
        ) from None
    return lock
