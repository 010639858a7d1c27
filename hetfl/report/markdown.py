"""A report as Markdown, with links to its pictures."""

from __future__ import annotations

import re

from hetfl.printable import printable
from hetfl.report.document import Block, Cell, Document, Picture, Points, Table, Text

LONGEST = 10_000
"""Characters of a text at the most."""
MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def to_markdown(document: Document, folder: str) -> str:
    """Return a document as Markdown.

    Args:
        document: the document.
        folder: where its pictures are, as a link says it.
    """
    parts = [f"# {escape(document.title)}"]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Return text in which nothing means anything to Markdown or HTML.

    >>> escape("a_b | <i> & 3")
    'a\\_b \\| \\<i\\> &amp; 3'
    """
    return MARKS.sub(r"\\\1", printable(text, LONGEST)).replace("&", "&amp;")


def _block(block: Block, folder: str) -> str:
    if isinstance(block, Text):
        return escape(block.text)
    if isinstance(block, Points):
        return "\n".join(f"- {escape(item)}" for item in block.items)
    if isinstance(block, Picture):
        return f"![{escape(block.caption)}]({folder}/{block.key}.png)\n\n*{escape(block.caption)}*"
    return _table(block)


def _table(table: Table) -> str:
    lines = [[escape(heading) for heading in table.head], [":--", *["--:"] * (len(table.head) - 1)]]
    lines += [[_cell(cell) for cell in row] for row in table.rows]
    return f"*{escape(table.caption)}*\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f"{escape(cell.text)}<br>{escape(cell.note)}" if cell.note else escape(cell.text)
