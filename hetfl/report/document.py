"""The elements of a report, independent of its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text, and a note in small print."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: the contents of the table, in a sentence.
        head: headings of the columns.
        rows: the rows; the first cell is the heading of the row.
        code: whether the cells are settings, which are shown in a monospace font.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    code: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure in files.

    Attributes:
        key: name of the files without suffix.
        caption: the contents of the figure, in a sentence.
    """

    key: str
    caption: str


Block: TypeAlias = Text | Points | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading, and the blocks below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Document:
    """A report: a title, and sections."""

    title: str
    sections: Sequence[Section]
