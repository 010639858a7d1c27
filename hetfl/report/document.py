"""The elements of a report, independent of its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A cell of a table.

    Attributes:
        text: the text.
        note: a note in small print.
        strong: whether the text is in bold, as that of a clear winner.
        value: the number by which a column is sorted; None: the text.
    """

    text: str
    note: str = ""
    strong: bool = False
    value: float | None = None


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
        result: what the figure shows, in words, for readers who do not see it.
    """

    key: str
    caption: str
    result: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer of a report, beside the figure that shows it.

    Attributes:
        items: the answer in sentences.
        notes: how groups are told apart, and what weakens the answer.
        warnings: what is missing or not comparable.
        picture: the figure; None without it.
    """

    items: Sequence[str]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    picture: Picture | None = None


@dataclass(frozen=True)
class Fact:
    """The answer to a question about the experiment.

    Attributes:
        name: the question, in a word.
        values: the answer by group; the name of the group is empty if all have the same.
    """

    name: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """What the experiment was."""

    facts: Sequence[Fact]


Block: TypeAlias = Text | Points | Table | Picture | Verdict | Facts


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
