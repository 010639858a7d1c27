"""Tables with several rows per round, to which a run appends: whole rows even if the process is killed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import replacing
from hetfl.reading import LARGEST_TABLE, check_size
from hetfl.runs.metrics_file import encoded

TAIL = 65_536
"""Bytes at the end of a file in which an incomplete last line is looked for."""


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows in one write; a new file begins with the names of the columns.

    An incomplete last line, which a failed write left, is removed first.

    Args:
        path: the file.
        columns: names of the columns, the first ``round``.
        rows: of one round, with one cell per column.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists():
        _drop_incomplete(path)
    fresh = not path.exists() or not path.stat().st_size
    lines = b"".join(encoded(str(cell) for cell in row) for row in ((columns, *rows) if fresh else rows))
    with path.open("ab") as file:
        file.write(lines)


def drop_rounds(path: Path, before: int) -> None:
    """Remove the rows of rounds from ``before`` on, and an incomplete last line; do nothing if there is no file.

    Raises:
        ConfigurationError: the file is not such a table.
    """
    if not path.exists():
        return
    check_size(path, LARGEST_TABLE)
    with replacing(path) as file:
        for number, (line, first) in enumerate(_lines(path)):
            expected, fits = ("a round", first.isdecimal()) if number else ("'round'", first == "round")
            if not fits:
                raise ConfigurationError(
                    f"Expected {expected} in the first cell of line {number + 1} of {path} but got {first!r}"
                )
            if not number or int(first) < before:
                file.write(line)


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield each whole line, and its first cell."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line, next(csv.reader([line.decode("utf-8", errors="replace")]), [""])[0]


def _drop_incomplete(path: Path) -> None:
    """Cut a file after its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        tail = file.read()
    os.truncate(path, size - len(tail) + tail.rfind(b"\n") + 1)
