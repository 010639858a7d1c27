"""``hetfl configs``: the packaged configurations, listed or printed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from hetfl.cli.config_files import near_names, packaged_file, packaged_names
from hetfl.cli.parser import OneLineParser
from hetfl.errors import ConfigurationError

GAP = "  "
NARROWEST = 20
"""Minimum width of a description in columns of the terminal."""


def main(args: Sequence[str]) -> None:
    """List the packaged configurations, or print one of them.

    Args:
        args: the arguments after the verb.

    Raises:
        ConfigurationError: no packaged configuration has the name.
    """
    parser = OneLineParser(prog="hetfl configs", description="List the packaged configurations, or print one of them.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="Name of the one to print, such as method/fedprox.")
    name = parser.parse_args(list(args)).name
    if name is None:
        console = Console(highlight=False)
        sys.stdout.write(listing(console.width if console.is_terminal else None))
        return
    file = packaged_file(name)
    if file is None:
        raise ConfigurationError(f"Expected a name that hetfl configs lists but got {name!r}{near_names(name)}")
    sys.stdout.write(file.read_text(encoding="utf-8"))


def listing(width: int | None) -> str:
    """Return the names and descriptions of the packaged configurations, with a blank line between folders.

    Args:
        width: characters per line, at which descriptions are wrapped; None: no wrapping.
    """
    names = packaged_names()
    indent = max(map(len, names)) + len(GAP)
    groups = [
        "".join(f"{_entry(name, indent, width)}\n" for name in group)
        for _, group in groupby(names, key=lambda name: name.rpartition("/")[0])
    ]
    return "\n".join(groups)


def _entry(name: str, indent: int, width: int | None) -> str:
    """Return a name and the description of its file, which starts after ``indent`` characters."""
    line = f"{name:<{indent}}{first_comment(name)}"
    if width is None:
        return line
    width = max(width, indent + NARROWEST)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def first_comment(name: str) -> str:
    """Return the first line of a packaged configuration without ``#``."""
    file = packaged_file(name)
    assert file is not None
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
