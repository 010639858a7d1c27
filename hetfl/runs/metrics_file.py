"""``metrics.csv``: one row per round in ascending order; whole rows even if the process is killed."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import replacing
from hetfl.reading import LARGEST_TABLE, check_size

COLUMNS = (
    "train/loss",
    "val/loss",
    "val/accuracy",
    "val/accuracy_by_level/",
    "val/accuracy_by_head/",
    "test/loss",
    "test/accuracy",
    "test/accuracy_by_level/",
    "test/accuracy_by_head/",
    "local/accuracy_mean",
    "local/accuracy_by_samples",
    "local/accuracy_worst10",
    "local/accuracy_std",
    "local/accuracy_var",
    "lr",
    "threshold",
    "budget/",
    "budget/density_by_level/",
    "comm/up_bytes",
    "comm/down_bytes",
    "comm/down_training_bytes",
    "comm/down_statistics_bytes",
    "comm/down_probes_bytes",
    "comm/up_bytes_total",
    "comm/down_bytes_total",
    "comm/up_density",
    "comm/up_ratio",
    "comm/up_ratio_total",
    "comm/refused",
    "compute/flops_total",
    "compute/",
    "sim/round_seconds",
    "sim/seconds_total",
    "sim/waited",
    "sim/reachable",
    "sim/dropped",
    "sim/failed",
    "sim/lost_total",
    "residual/norm",
    "cluster/",
    "cluster/size/",
    "cluster/accuracy/",
    "cluster/mean_norm/",
    "cluster/max_norm/",
)
"""Order of the columns after ``step``; a name that ends in a slash stands for one column per level, head or cluster."""

HEAD = "head_"
"""Prefix of the names of heads; names of levels must not have it."""

_FIRST_EDITION = re.compile(rf"(val|test)/accuracy/({HEAD})?(.+)")

_OF_A_SCORE = re.compile(
    r"((?:val|test)/|local/|cluster/)([a-z][a-z0-9_]*?)((?:_by_(?:level|head)/.+|_(?:mean|by_samples|worst10|std|var)|/.+)?)"
)
"""The name of a score as a part of the name of a column."""

_NOT_METRICS = ("epoch", "step")  # Lightning adds the epoch, which equals the step: the number of the round


def score_column(stage: str, part: str = "", score: str = "accuracy") -> str:
    """Return the column of a score.

    Args:
        stage: ``val`` or ``test``.
        part: the name of a level, or :data:`HEAD` and the number of a head; empty for the global model.
        score: name of the score.

    >>> [score_column("val", part) for part in ("", "b", "head_2")]
    ['val/accuracy', 'val/accuracy_by_level/b', 'val/accuracy_by_head/2']
    """
    if not part:
        return f"{stage}/{score}"
    if part.startswith(HEAD):
        return f"{stage}/{score}_by_head/{part.removeprefix(HEAD)}"
    return f"{stage}/{score}_by_level/{part}"


def present_name(column: str) -> str:
    """Return the current name of a column; a ``metrics.csv`` of version 0.1 has ``val/accuracy/<level or head>``.

    >>> present_name("test/accuracy/head_1"), present_name("val/accuracy/a"), present_name("val/accuracy")
    ('test/accuracy_by_head/1', 'val/accuracy_by_level/a', 'val/accuracy')
    """
    old = _FIRST_EDITION.fullmatch(column)
    return column if old is None else score_column(old[1], (old[2] or "") + old[3])


def columns_of(score: str = "accuracy") -> tuple[str, ...]:
    """Return :data:`COLUMNS` with another score instead of the accuracy.

    >>> columns_of("r2")[2]
    'val/r2'
    """
    return tuple(column.replace("accuracy", score) for column in COLUMNS)


def _of_accuracy(column: str) -> str:
    """Return the name of a column with the accuracy instead of another score."""
    match = _OF_A_SCORE.fullmatch(column)
    return column if match is None else f"{match[1]}accuracy{match[3]}"


def _rank(column: str) -> int:
    """Return the position of a column in :data:`COLUMNS`; unknown columns come last."""
    for name in (column, _of_accuracy(column)):
        family = name.rpartition("/")[0] + "/"
        for listed in (name, family):
            if listed in COLUMNS:
                return COLUMNS.index(listed)
    return len(COLUMNS)


def ordered(columns: Iterable[str]) -> list[str]:
    """Return columns in the order of :data:`COLUMNS`; columns of one family and unknown columns keep their order."""
    return sorted(columns, key=_rank)


def format_value(value: float) -> str:
    """Return a number as the shortest text that gives the same float64; integers have no decimal point.

    >>> [format_value(value) for value in (1234567890123.0, 0.1, 1e300, float("nan"))]
    ['1234567890123', '0.1', '1e+300', 'nan']
    """
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) <= 2**53 else repr(number)


def encoded(cells: Iterable[str]) -> bytes:
    """Return a line of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


class MetricsFile:
    """A CSV file with one row per round in ascending order; only the last row is kept in memory.

    The first metrics of a round append a row; further metrics overwrite it in a single write. New columns, an earlier
    round or a shorter row give a new file, which is renamed. A process that is killed at any time leaves whole rows and
    at most one incomplete last line, which readers ignore.

    Args:
        path: the file; an existing file is read and continued.

    Raises:
        ConfigurationError: the existing file is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._last: dict[str, str] = {}
        self._end = 0  # offset of the end of the last whole row
        self._written = not path.exists()  # whether this object wrote all lines of the file
        if not self._written:
            self._columns = self._columns_on_disk()
            for row in self._rows():
                self._last = row

    @property
    def last_step(self) -> int:
        """The round of the last row; -1 if there is none."""
        return int(self._last["step"]) if self._last else -1

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Merge metrics into the row of a round; existing values of the same metrics are replaced."""
        cells = {name: format_value(value) for name, value in metrics.items() if name not in _NOT_METRICS}
        last_step = self.last_step
        columns = ordered(dict.fromkeys([*self._columns, *cells]))
        if step == last_step and not self.path.exists():  # the file was deleted
            cells = {**self._last, **cells}
        if step < last_step or columns != self._columns or not self._written or not self.path.exists():
            self._rewrite(columns, row={"step": str(step), **cells})
        elif step == last_step:
            self._replace({**self._last, **cells})
        else:
            self._append({"step": str(step), **cells})

    def declare(self, columns: Iterable[str]) -> None:
        """Add columns, even if no round ever has values for them."""
        wanted = ordered(dict.fromkeys([*self._columns, *columns]))
        if wanted != self._columns:
            self._rewrite(wanted)

    def truncate(self, before_step: int) -> None:
        """Remove the rows of rounds from ``before_step`` on."""
        if self.path.exists():
            self._rewrite(self._columns, before_step=before_step)

    def _append(self, row: dict[str, str]) -> None:
        """Write a new last row, after removing an incomplete line of a failed write."""
        os.truncate(self.path, self._end)
        line = encoded(row.get(name, "") for name in ("step", *self._columns))
        with self.path.open("ab") as file:
            file.write(line)
        self._last, self._end = row, self._end + len(line)

    def _replace(self, row: dict[str, str]) -> None:
        """Overwrite the last row in one write; a shorter row, which is rare, gives a new file."""
        line = encoded(row.get(name, "") for name in ("step", *self._columns))
        old = encoded(self._last.get(name, "") for name in ("step", *self._columns))
        if len(line) < len(old):
            self._rewrite(self._columns, row=row)
            return
        descriptor, start = os.open(self.path, os.O_WRONLY), self._end - len(old)
        try:
            if os.pwrite(descriptor, line, start) < len(line):  # the disk is full
                os.pwrite(descriptor, old, start)
                os.ftruncate(descriptor, self._end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(descriptor)
        self._last, self._end = row, start + len(line)

    def _lines(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", newline="") as file:
            yield from (line for line in file if line.endswith("\n"))

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the cells of each line.

        Raises:
            ConfigurationError: the file is not a table.
        """
        reader = csv.reader(self._lines())
        try:
            yield from ((reader.line_num, cells) for cells in reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"Expected a table of rounds in {self.path} but got, after line {reader.line_num}: {error}"
            ) from error

    def _columns_on_disk(self) -> list[str]:
        check_size(self.path, LARGEST_TABLE)
        _, header = next(self._cells(), (1, ["step"]))
        if (first := next(iter(header), "")) != "step":
            raise ConfigurationError(f"Expected the first column of {self.path} to be 'step' but got {first!r}")
        return header[1:]

    def _rows(self) -> Iterator[dict[str, str]]:
        if not self.path.exists():
            return
        table = self._cells()
        _, header = next(table, (1, ["step"]))
        for line, cells in table:
            if len(cells) != len(header) or not cells[0].isdecimal():
                raise ConfigurationError(
                    f"Expected {len(header)} cells, the first a round, in line {line} of {self.path} "
                    f"but got {','.join(cells)!r}"
                )
            yield dict(zip(header, cells, strict=True))

    def _rewrite(self, columns: list[str], row: dict[str, str] | None = None, before_step: int | None = None) -> None:
        """Replace the file atomically by one with other columns, one more row, or fewer rows."""
        last: dict[str, str] = {}
        with replacing(self.path) as file:
            file.write(encoded(("step", *columns)))
            for cells in _merged(self._rows(), row):
                if before_step is not None and int(cells["step"]) >= before_step:
                    break
                last = cells
                file.write(encoded(cells.get(name, "") for name in ("step", *columns)))
            end = file.tell()
        self._columns, self._last, self._end, self._written = columns, last, end, True


def _merged(rows: Iterator[dict[str, str]], row: dict[str, str] | None) -> Iterator[dict[str, str]]:
    """Yield rows in the order of steps with one more row; two rows of the same step are merged."""
    for cells in rows:
        if row is not None and int(row["step"]) <= int(cells["step"]):
            if row["step"] == cells["step"]:
                cells |= row
            else:
                yield row
            row = None
        yield cells
    if row is not None:
        yield row
