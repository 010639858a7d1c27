"""What a report consists of, whatever it is written as."""

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
    """Sentences, one below the other."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """What stands in a table: a figure, and what belongs to it in small print."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows, in a sentence.
        head: the columns' headings.
        rows: the rows; the first cell is the row's heading.
        code: whether the cells are settings, to be shown letter by letter.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    code: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure that lies in files.

    Attributes:
        key: the files' name without suffix.
        caption: what it shows, in a sentence.
    """

    key: str
    caption: str


Block: TypeAlias = Text | Points | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Document:
    """A report: title, and sections."""

    title: str
    sections: Sequence[Section]
