"""Rendering of a report by ``templates/``: as one self-contained HTML file, and as Markdown with linked figures."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hetfl.printable import printable
from hetfl.report.document import Document
from hetfl.report.embedding import DARK, PAGE_COLOURS, Embedded
from hetfl.report.groups import Group
from hetfl.report.series import seeds_of

LONGEST = 10_000
"""Maximum number of characters of a text in Markdown."""
MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")
DOT = re.compile(r"(?<=\w)\.(?=[a-zA-Z_])")
"""Positions at which names of settings and classes may be broken."""
UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGTP]?(?:FLOP|B)|s|parameters|param\.)(?!\w))")
"""The space between a number and its unit, at which a line may not be broken."""


def to_html(document: Document, drawings: Mapping[str, Embedded], groups: Sequence[Group], folder: str) -> str:
    """Return a document as HTML, which loads nothing: its one script is in it, and no other script may run.

    Args:
        document: the document.
        drawings: the figures by key.
        groups: the groups, in the order of their colours.
        folder: the folder of the figures' numbers in links.
    """
    environment, plain = _environment(autoescape=True), _environment()
    colours = {"colours": PAGE_COLOURS, "dark": DARK}
    style, script = (plain.get_template(f"report.{kind}").render(colours) for kind in ("css", "js"))
    return environment.get_template("report.html").render(
        document=document,
        drawings=drawings,
        groups=json.dumps([{"name": group.name, "seeds": seeds_of(group)} for group in groups], ensure_ascii=False),
        folder=folder,
        style=style,
        script=script,
        script_hash=f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}",
    )


def to_markdown(document: Document, folder: str) -> str:
    """Return a document as Markdown.

    Args:
        document: the document.
        folder: the folder of the figures in links.
    """
    environment = _environment(finalize=lambda value: value if hasattr(value, "__html__") else escape(value))
    return environment.get_template("report.md").render(document=document, folder=folder)


def to_live_page(**values: Any) -> str:
    """Return the page of a run that trains as HTML.

    Args:
        values: the variables of ``templates/live.html``; texts are escaped, and figures are SVG.
    """
    return _environment(autoescape=True).get_template("live.html").render(values)


def escape(text: str) -> str:
    r"""Return text with all special characters of Markdown and HTML escaped.

    >>> escape("a_b | <i> & 3")
    'a\\_b \\| \\<i\\> &amp; 3'
    """
    return MARKS.sub(r"\\\1", printable(text, LONGEST)).replace("&", "&amp;")


def _environment(**settings: Any) -> Environment:
    """Return the environment of the templates; ``settings`` define how values are escaped."""
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
    environment.filters["slug"] = lambda title: re.sub(r"\W+", "-", title.lower()).strip("-")
    environment.filters["unbroken"] = lambda text: UNIT.sub("\N{NO-BREAK SPACE}", text)
    environment.filters["breakable"] = lambda escaped: DOT.sub(".<wbr>", escaped)
    return environment
