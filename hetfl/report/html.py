"""A report as one HTML file: pictures and style are in it, and it loads nothing."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape

from hetfl.report.document import Block, Cell, Document, Picture, Points, Section, Table, Text

STYLE = """
@page { size: A4; margin: 16mm 12mm; }
body { font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 960px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin: 2em 0 .4em; border-bottom: 1px solid #ccc; }
p, ul { max-width: 46em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .3em; white-space: nowrap; }
th, td { text-align: right; padding: .28em 0 .28em 1.2em; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
td, tbody th { white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid #666; vertical-align: bottom; }
tbody th { font-weight: 600; }
small { display: block; color: #555; white-space: normal; max-width: 22em; margin-left: auto; }
.code td, .code th { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em;
                     overflow-wrap: anywhere; white-space: normal; }
.code td { text-align: left; max-width: 22em; }
.code thead th { text-align: left; }
figure { margin: .6em 0 1.4em; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .87em; }
@media print {
  body { font-size: 9.5pt; margin: 0; padding: 0; max-width: none; }
  .wide { overflow: visible; }
  figure, tr, caption { break-inside: avoid; }
  h2, .before { break-after: avoid; }
  thead { display: table-header-group; }
}
""".strip()

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""


def to_html(document: Document, pictures: Mapping[str, bytes]) -> str:
    """Return a document as HTML.

    Args:
        document: the document.
        pictures: the SVG file of each picture, by its key.
    """
    title = escape(document.title)
    body = "\n".join(_section(section, pictures) for section in document.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def _section(section: Section, pictures: Mapping[str, bytes]) -> str:
    followed = [*section.blocks[1:], None]
    parts = [
        _block(block, pictures, before=isinstance(after, (Picture, Table)))
        for block, after in zip(section.blocks, followed, strict=True)
    ]
    return "\n".join([f"<h2>{escape(section.title)}</h2>", *parts])


def _block(block: Block, pictures: Mapping[str, bytes], before: bool) -> str:
    if isinstance(block, Text):
        return f"<p{' class=before' if before else ''}>{_prose(block.text)}</p>"
    if isinstance(block, Points):
        return "<ul>\n" + "\n".join(f"<li>{_prose(item)}</li>" for item in block.items) + "\n</ul>"
    if isinstance(block, Picture):
        caption, data = escape(block.caption), b64encode(pictures[block.key]).decode("ascii")
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
        return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"
    return _table(block)


def _prose(text: str) -> str:
    """Return a sentence in which a number keeps its percent sign on the same line."""
    return escape(text).replace(" %", "&nbsp;%")


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    )
    if table.code:  # names of settings and classes are broken at their dots
        rows = re.sub(r"(?<=\w)\.(?=[a-zA-Z_])", ".<wbr>", rows)
    kind = "wide code" if table.code else "wide"
    return (
        f'<div class="{kind}"><table>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f"{escape(cell.text)}<small>{escape(cell.note)}</small>" if cell.note else escape(cell.text)
