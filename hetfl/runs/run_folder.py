"""The folder of a run as a Lightning logger: ``config.yaml``, ``metrics.csv``, tables, ``checkpoints/``.

Lightning's CSV logger deletes the file of a run that it continues, and writes one row per call. This logger writes one
row per round for any number of calls, and a continued run appends to the rounds that it kept.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from hetfl.errors import ConfigurationError
from hetfl.files import sync, write_whole
from hetfl.printable import printable
from hetfl.runs.file_lock import lock_file
from hetfl.runs.metrics_file import MetricsFile, encoded
from hetfl.runs.round_rows import append_rows, drop_rounds

LOCK = ".lock"
"""Name of the lock file, which keeps other processes from writing into the folder."""
GROWING = ("values", "timeline")
"""Names of the tables to which every round appends rows."""
EARLY_END = "ended.txt"
"""Name of the file that marks a run that its settings ended before its last round."""


def ended_early(folder: Path, done: int, asked: int) -> bool:
    """Return whether the settings of a run ended it after ``done`` of ``asked`` rounds."""
    path = folder / EARLY_END
    return path.is_file() and path.read_bytes() == _early_end(done, asked)


def note_end(folder: Path, done: int, asked: int) -> None:
    """Write the mark of a run that its settings ended early; do nothing if all rounds are done."""
    if done < asked and not ended_early(folder, done, asked):
        try:
            write_whole(folder / EARLY_END, _early_end(done, asked))
        except OSError as error:
            rank_zero_warn(f"{folder / EARLY_END} not written ({error.strerror})")


def _early_end(done: int, asked: int) -> bytes:
    return f"ended by its settings after {done} of {asked} rounds\n".encode()


class RunFolder(Logger):
    """The logger of a run: one new folder per run, one row of ``metrics.csv`` per round.

    Rank zero makes the folder on first use, as ``root/name/<date>_<time>``; ``-2``, ``-3``, ... is added if runs start
    in the same second. By Lightning's defaults, checkpoints and the configuration are written there too. Only one
    process at a time can write into the folder. If the disk is full, a row is only a warning, and is written later.

    Args:
        root: the folder of all runs.
        name: the folder in ``root`` for runs that belong together.
        folder: folder of a run to continue, instead of a new folder; its ``metrics.csv`` is kept.

    Raises:
        ConfigurationError: ``name`` is not the name of one folder; on first use: ``folder`` does not exist, another
            process uses it, or its ``metrics.csv`` has another format.
    """

    def __init__(self, root: str = "runs", name: str = "run", folder: str | None = None) -> None:
        super().__init__()
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise ConfigurationError(f"Expected the run's name to be the name of one folder but got {name!r}")
        self._parent = Path(root) / name
        self._continued = None if folder is None else Path(folder)
        self._metrics: MetricsFile | None = None
        self._waiting: list[tuple[int, dict[str, float]]] = []  # rows that are not written yet
        self._whole: dict[str, bytes] = {}  # contents of the files from write_file, by name

    def go_on_in(self, folder: Path) -> None:
        """Continue the run of a folder, instead of making a new folder.

        Raises:
            ConfigurationError: this logger has written into another folder already.
        """
        if self._metrics is not None and self._metrics.path.parent.resolve() != folder.resolve():
            raise ConfigurationError(f"Expected a new trainer to go on with {folder} but got one of another run")
        self._continued = folder

    @property
    def name(self) -> str:
        """Empty, so that Lightning writes checkpoints directly below the folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, like the name."""
        return ""

    @property
    @rank_zero_only
    def save_dir(self) -> str:
        """The run folder; None on ranks other than zero, which write nothing."""
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
            path = printable(self._open().path if self._metrics is None else self._metrics.path)
            rank_zero_warn(f"Row {step} of {path} not written ({error.strerror}); training goes on")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in ``config.yaml``."""

    @rank_zero_only
    def declare(self, columns: Iterable[str]) -> None:
        """Add columns to ``metrics.csv``, even if no round ever has values for them.

        Args:
            columns: names of columns; names of families, which end in a slash, are ignored.
        """
        self._open().declare(name for name in columns if not name.endswith("/"))

    @rank_zero_only
    def check_rounds(self, before_step: int) -> None:
        """Refuse to continue from a checkpoint before round ``before_step`` if rows of earlier rounds are missing.

        Raises:
            ConfigurationError: the folder to continue lacks such rows.
        """
        metrics = self._open()
        if self._continued is not None and metrics.last_step + 1 < before_step:
            raise ConfigurationError(
                f"Expected {before_step} rounds in {metrics.path}, as in the checkpoint, but got "
                f"{metrics.last_step + 1}: resume from an older checkpoint (--ckpt_path), which repeats these rounds"
            )

    @rank_zero_only
    def truncate(self, before_step: int) -> None:
        """Remove the rows of rounds from ``before_step`` on, for a run that continues from a checkpoint.

        Raises:
            ConfigurationError: the folder to continue lacks rows of earlier rounds.
        """
        self.check_rounds(before_step)
        metrics = self._open()
        metrics.truncate(before_step)
        for name in GROWING:
            drop_rounds(metrics.path.with_name(f"{name}.csv"), before_step)

    @rank_zero_only
    def remove_table(self, name: str) -> None:
        """Remove ``<name>.csv`` if there is one."""
        self._whole.pop(f"{name}.csv", None)
        self._open().path.with_name(f"{name}.csv").unlink(missing_ok=True)

    @rank_zero_only
    def write_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write ``<name>.csv`` atomically; it replaces an existing file.

        Args:
            name: name of the table.
            columns: names of the columns.
            rows: rows with one cell per column; None is an empty cell.
        """
        cells = ([("" if cell is None else str(cell)) for cell in row] for row in rows)
        try:
            self.write_file(f"{name}.csv", b"".join(encoded(line) for line in (columns, *cells)))
        except OSError as error:
            rank_zero_warn(f"{printable(error.filename)} not written ({error.strerror})")

    @rank_zero_only
    def has(self, name: str) -> bool:
        """Return whether the folder has ``<name>.csv``; None on ranks other than zero."""
        return self._open().path.with_name(f"{name}.csv").is_file()

    @rank_zero_only
    def has_file(self, name: str) -> bool:
        """Return whether the folder has a file; None on ranks other than zero."""
        return self._open().path.with_name(name).is_file()

    @rank_zero_only
    def append_rows(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Append a round's rows to ``<name>.csv``, one of :data:`GROWING`; a new file begins with the columns' names.

        Args:
            name: name of the table.
            columns: names of the columns, the first ``round``.
            rows: with one cell per column.
        """
        try:
            append_rows(self._open().path.with_name(f"{name}.csv"), columns, rows)
        except OSError as error:
            rank_zero_warn(f"{name}.csv not written ({printable(error)}); training goes on")

    @rank_zero_only
    def flush(self) -> None:
        """Flush the rows of all rounds to the disk, as a checkpoint is resumed only with them."""
        try:
            path = self._open().path
            for each in (path, *(path.with_name(f"{name}.csv") for name in GROWING), path.parent):
                if each.exists():
                    sync(each)
        except OSError as error:
            rank_zero_warn(f"Rows not flushed to the disk ({printable(error)}); training goes on")

    @rank_zero_only
    def write_file(self, name: str, data: bytes) -> None:
        """Write a file into the folder atomically; if the folder is deleted, the file is written again with it.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._open().path.with_name(name)
        self._whole[name] = data
        write_whole(path, data)

    def _open(self) -> MetricsFile:
        if self._metrics is None:
            folder = self._new_folder() if self._continued is None else self._continued
            if not folder.is_dir():
                raise ConfigurationError(f"Expected the folder of a run to continue but got {str(folder)!r}")
            self._lock = lock_file(folder / LOCK)
            self._metrics = MetricsFile(folder / "metrics.csv")
        elif not self._lock.is_at(self._metrics.path.with_name(LOCK)):
            self._make_anew(self._metrics.path.parent)
        return self._metrics

    def _make_anew(self, folder: Path) -> None:
        """Make a deleted folder again with the files that are in memory, and warn of the lost ones.

        Raises:
            ConfigurationError: another process uses a folder of this name.
            OSError: the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(folder / LOCK)
        for name, data in self._whole.items():
            write_whole(folder / name, data)
        kept = ", ".join(self._whole) or "nothing"
        rank_zero_warn(
            f"Run folder {folder} was deleted during the run: it is made again with {kept}; rows and files of earlier "
            "rounds are lost"
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
