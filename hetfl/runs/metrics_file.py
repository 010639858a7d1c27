"""``metrics.csv``: one row per round, in rising order, whole whenever the process stops."""

from __future__ import annotations

import csv
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
"""The names of heads begin with it, and those of levels do not."""

_FIRST_EDITION = re.compile(rf"(val|test)/accuracy/({HEAD})?(.+)")

_OF_A_SCORE = re.compile(
    r"((?:val|test)/|local/|cluster/)([a-z][a-z0-9_]*?)((?:_by_(?:level|head)/.+|_(?:mean|by_samples|worst10|std|var)|/.+)?)"
)
"""The name of any score within that of a column."""

_NOT_METRICS = ("epoch", "step")  # Lightning adds the epoch, which is the round, which is the step


def score_column(stage: str, part: str = "", score: str = "accuracy") -> str:
    """Return the column of a score.

    Args:
        stage: ``val`` or ``test``.
        part: the name of a level, or of a head with :data:`HEAD` before its number; empty for the global model.
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
    """Return what a column is called now; a ``metrics.csv`` of version 0.1 has ``val/accuracy/<level or head>``.

    >>> present_name("test/accuracy/head_1"), present_name("val/accuracy/a"), present_name("val/accuracy")
    ('test/accuracy_by_head/1', 'val/accuracy_by_level/a', 'val/accuracy')
    """
    old = _FIRST_EDITION.fullmatch(column)
    return column if old is None else score_column(old[1], (old[2] or "") + old[3])


def columns_of(score: str = "accuracy") -> tuple[str, ...]:
    """Return :data:`COLUMNS` of a run whose models are compared by another score.

    >>> columns_of("r2")[2]
    'val/r2'
    """
    return tuple(column.replace("accuracy", score) for column in COLUMNS)


def _of_accuracy(column: str) -> str:
    """Return the column of the accuracy that stands where a column of another score does."""
    found = _OF_A_SCORE.fullmatch(column)
    return column if found is None else f"{found[1]}accuracy{found[3]}"


def _rank(column: str) -> int:
    """Return the place of a column in :data:`COLUMNS`; columns that it does not name come last."""
    for name in (column, _of_accuracy(column)):
        family = name.rpartition("/")[0] + "/"
        for listed in (name, family):
            if listed in COLUMNS:
                return COLUMNS.index(listed)
    return len(COLUMNS)


def ordered(columns: Iterable[str]) -> list[str]:
    """Return columns in the order of :data:`COLUMNS`, equals and unknown ones as they came."""
    return sorted(columns, key=_rank)


def format_value(value: float) -> str:
    """Return a number as text that reads back as the same float64: integers without a point, others in shortest form.

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
    """A CSV file with one row per round, in rising order; only the last row is held in memory.

    A row is appended when its round is first heard of, and written over in one write while more is said about it; other
    columns, an earlier round or a shorter row make a new file, renamed. A process killed at any instant leaves whole
    rows and at most one torn last line, which is no row.

    Args:
        path: the file; one that exists is read, and continued by the first change.

    Raises:
        ConfigurationError: the file that exists is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._last: dict[str, str] = {}
        self._end = 0  # where whole rows end in the file
        self._written = not path.exists()  # whether its lines are those that this object wrote
        if not self._written:
            self._columns = self._columns_on_disk()
            for row in self._rows():
                self._last = row

    @property
    def last_step(self) -> int:
        """The round of the last row; -1 if there is none."""
        return int(self._last["step"]) if self._last else -1

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Merge metrics into the row of a round; a metric that is there already is replaced."""
        cells = {name: format_value(value) for name, value in metrics.items() if name not in _NOT_METRICS}
        last_step = self.last_step
        columns = ordered(dict.fromkeys([*self._columns, *cells]))
        if step == last_step and not self.path.exists():  # deleted meanwhile
            cells = {**self._last, **cells}
        if step < last_step or columns != self._columns or not self._written or not self.path.exists():
            self._rewrite(columns, row={"step": str(step), **cells})
        elif step == last_step:
            self._replace({**self._last, **cells})
        else:
            self._append({"step": str(step), **cells})

    def declare(self, columns: Iterable[str]) -> None:
        """Have these columns, whether or not a round ever reports on them."""
        wanted = ordered(dict.fromkeys([*self._columns, *columns]))
        if wanted != self._columns:
            self._rewrite(wanted)

    def truncate(self, before_step: int) -> None:
        """Remove the rows of rounds from ``before_step`` on."""
        if self.path.exists():
            self._rewrite(self._columns, before_step=before_step)

    def _append(self, row: dict[str, str]) -> None:
        """Write a new last row; a torn line that a failed write left behind the whole ones is cut off first."""
        os.truncate(self.path, self._end)
        line = encoded(row.get(name, "") for name in ("step", *self._columns))
        with self.path.open("ab") as file:
            file.write(line)
        self._last, self._end = row, self._end + len(line)

    def _replace(self, row: dict[str, str]) -> None:
        """Write the last row again, in one write over the old one: more cells make a line longer, rarely shorter."""
        line = encoded(row.get(name, "") for name in ("step", *self._columns))
        old = encoded(self._last.get(name, "") for name in ("step", *self._columns))
        if len(line) < len(old):
            self._rewrite(self._columns, row=row)
            return
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, line, self._end - len(old))
        finally:
            os.close(descriptor)
        self._last, self._end = row, self._end - len(old) + len(line)

    def _lines(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", newline="") as file:
            yield from (line for line in file if line.endswith("\n"))

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each line's number and cells.

        Raises:
            ConfigurationError: the file is no table.
        """
        reader = csv.reader(self._lines())
        try:
            yield from ((reader.line_num, cells) for cells in reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"Expected a table of rounds in {self.path} but got, behind line {reader.line_num}: {error}"
            ) from error

    def _columns_on_disk(self) -> list[str]:
        check_size(self.path, LARGEST_TABLE)
        _, header = next(self._cells(), (1, ["step"]))
        if header[0] != "step":
            raise ConfigurationError(f"Expected the first column of {self.path} to be 'step' but got {header[0]!r}")
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
        """Write the file anew, in one step for whoever reads it: with other columns, one more row, or fewer rows."""
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
    """Yield rows, in order of their step, with one more among them; two of the same step are joined."""
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
