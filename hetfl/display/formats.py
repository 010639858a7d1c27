"""Formats of quantities, durations and tables."""

from __future__ import annotations

from math import floor, log10

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from hetfl.printable import printable

WIDEST = 10_000
"""Columns of a terminal in which every table fits."""


def cell(text: object) -> Text:
    r"""Return a text as a cell of a table: on one line, and without interpretation of rich's markup.

    >>> cell("[red]phone\n").plain
    '[red]phone\\n'
    """
    return Text(printable(text))


def plain_table(title: str) -> Table:
    """Return an empty table for the terminal, whose only line is below its head."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def print_table(table: Table, console: Console) -> None:
    """Print a table and an empty line: columns move together in a narrow terminal, and no cell is truncated.

    ``Console.print`` would limit the table to the width of the terminal.
    """
    wide = console.options.update(width=WIDEST)
    if console.measure(table, options=wide).maximum > console.width:
        table.padding = (0,)
    needed = max(console.width, console.measure(table, options=wide).maximum)
    console.print(Segments(console.render(table, console.options.update(width=needed))), "", crop=False)


def format_share(share: float) -> str:
    """Return a share as a percentage with one decimal.

    >>> format_share(0.0253), format_share(1)
    ('2.5 %', '100.0 %')
    """
    return f"{100 * share:.1f} %"


def format_quantity(value: float, unit: str) -> str:
    """Return a quantity with three significant digits and a decimal prefix (k is 10³).

    >>> format_quantity(1_234_567, "B"), format_quantity(999, "B"), format_quantity(2.5e13, "FLOP")
    ('1.23 MB', '999 B', '25.0 TFLOP')
    """
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value /= 1000
        power += 1
    digits = 0 if power == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds; below a minute as seconds with two significant digits.

    >>> format_seconds(3725.4), format_seconds(52.3), format_seconds(0.0443), format_seconds(0.0)
    ('1:02:05', '52 s', '0.044 s', '0 s')
    """
    if 0 < seconds < 9.95:
        return f"{seconds:.{1 - floor(log10(float(f'{seconds:.1e}')))}f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
