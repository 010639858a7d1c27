"""A report as one HTML file, which loads nothing, and as Markdown with links to its pictures: by ``templates/``."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hetfl.printable import printable
from hetfl.report.document import Document

LONGEST = 10_000
"""Characters of a text in Markdown at the most."""
MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")
DOT = re.compile(r"(?<=\w)\.(?=[a-zA-Z_])")
"""Where names of settings and classes are broken."""


def to_html(document: Document, pictures: Mapping[str, bytes]) -> str:
    """Return a document as HTML.

    Args:
        document: the document.
        pictures: the SVG file of each picture, by its key.
    """
    encoded = {key: b64encode(picture).decode("ascii") for key, picture in pictures.items()}
    return _environment(autoescape=True).get_template("report.html").render(document=document, pictures=encoded)


def to_markdown(document: Document, folder: str) -> str:
    """Return a document as Markdown.

    Args:
        document: the document.
        folder: where its pictures are, as a link says it.
    """
    environment = _environment(finalize=lambda value: value if hasattr(value, "__html__") else escape(value))
    return environment.get_template("report.md").render(document=document, folder=folder)


def escape(text: str) -> str:
    r"""Return text in which nothing means anything to Markdown or HTML.

    >>> escape("a_b | <i> & 3")
    'a\\_b \\| \\<i\\> &amp; 3'
    """
    return MARKS.sub(r"\\\1", printable(text, LONGEST)).replace("&", "&amp;")


def _environment(**settings: Any) -> Environment:
    """Return the templates of reports; nothing in them is escaped but values, as the settings say."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **settings,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["breakable"] = lambda escaped: DOT.sub(".<wbr>", escaped)
    return environment
