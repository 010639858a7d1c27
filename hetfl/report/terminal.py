"""The answer of a report in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hetfl.printable import printable
from hetfl.report.composing import warnings_of
from hetfl.report.material import Material
from hetfl.report.verdict import rule, verdict

COLUMNS = 80
"""Maximum width of a line."""
LONGEST = 2_000
"""Maximum number of characters of a sentence."""


def answer_lines(material: Material) -> Iterator[str]:
    """Yield the lines of the answer: the sentences of the report's first box, at most 80 characters wide."""
    yield ""
    for sentence in verdict(material):
        yield from _wrapped(sentence, "* ")
    if len(material.groups) > 1:
        yield from _wrapped(rule(), "  ")
    for sentence in warnings_of(material):
        yield from _wrapped(sentence, "! ")
    yield ""


def _wrapped(sentence: str, mark: str) -> list[str]:
    return textwrap.wrap(printable(sentence, LONGEST), COLUMNS, initial_indent=mark, subsequent_indent="  ")
