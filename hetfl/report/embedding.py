"""Figures inside of the page: an SVG drawing whose colours follow the page, and the points of its lines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hetfl.analysis.theme import COLOURS, GREY, GRID, INK, ON_DARK, PAPER
from hetfl.report.figures import figure_of
from hetfl.report.panels import Drawing

DARK = "#16181c"
"""Background of the page in dark mode, on which ``theme.ON_DARK`` can be read."""
PAGE_COLOURS = list(zip(COLOURS, ON_DARK, strict=True))
"""The colours of groups in light and in dark mode."""
VARIABLES = {
    INK: "var(--ink)",
    GREY: "var(--note)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)},
}
"""Variables of ``report.css`` in place of the colours of figures."""
HEADER = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
UNUSED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
MARK = re.compile(r'<g id="(mark g\d+ (?:mean|s\d+))">')
IDENTITY = re.compile(r'(\bid="|href="#|url\(#)')
NUMBERS = re.compile(r'(?<= [dxy]=")[^"]*|(?<= transform=")[^"]*')
DECIMALS = re.compile(r"(\.\d\d)\d+")
UNNEEDED = re.compile(r" ?stroke-(?:dashoffset: 0|linejoin: miter|linecap: square);?")
SPACE = re.compile(r"\n\s*")


@dataclass(frozen=True)
class Embedded:
    """A figure as the page holds it.

    Attributes:
        prefix: begin of the names of its elements, which are unique in the page.
        text: the contents of its SVG file.
        lines: the axes and the points of its lines as JSON; empty if it has none.
    """

    prefix: str
    text: str
    lines: str = ""

    def svg(self, words: str) -> str:
        """Return the drawing as an element of the page.

        Args:
            words: what it shows, for readers who do not see it.
        """
        text = UNUSED.sub("", HEADER.sub("", self.text))
        for name in ("width", "height"):
            text = re.sub(rf'(<svg [^>]*?) {name}="[^"]*"', r"\1", text, count=1)
        text = MARK.sub(r'<g class="\1">', text)
        text = NUMBERS.sub(lambda number: DECIMALS.sub(r"\1", number[0]).replace("\n", ""), text)
        text = UNNEEDED.sub("", text)
        text = IDENTITY.sub(rf"\g<1>{self.prefix}", text)
        if self.lines:
            text = re.sub("|".join(VARIABLES), lambda colour: VARIABLES[colour[0].lower()], text, flags=re.IGNORECASE)
        named = f'<svg role="img" aria-label="{escape(words)}" '
        return SPACE.sub("\n", text).replace("<svg ", named, 1)  # matplotlib escapes names


def embedded(prefix: str, drawing: Drawing, text: str) -> Embedded:
    """Return a figure as the page holds it.

    Args:
        prefix: begin of the names of its elements, which no other figure has.
        drawing: the figure and its numbers.
        text: the contents of its SVG file; of a figure with lines, in the size of the figure.
    """
    return Embedded(prefix, text, _lines(drawing) if drawing.shown else "")


def _lines(drawing: Drawing) -> str:
    (*_, x, y), *rows = drawing.shown
    titles = list(dict.fromkeys(row[0] for row in rows))
    lines: list[dict[str, Any]] = []
    for (title, group, seed), points in groupby(rows, key=lambda row: tuple(row[:3])):
        places = [[float(f"{float(cell):.5g}") for cell in row[3:5]] for row in points]
        xs, ys = np.array([place for place in places if np.isfinite(place).all()]).reshape(-1, 2).T.tolist()
        lines.append({"panel": titles.index(title), "group": group, "seed": seed, "xs": xs, "ys": ys})
    axes = [{"title": title, **_place(ax)} for title, ax in zip(titles, drawing.figure.axes, strict=False)]
    content = {"axes": axes, "lines": lines, "x": x, "y": y}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _place(ax: Axes) -> dict[str, Any]:
    """Return the box of axes in an SVG file, in points from the upper left, and their limits."""
    width, height = (72 * float(side) for side in figure_of(ax).get_size_inches())
    box = ax.get_position()
    corners = (width * box.x0, height * (1 - box.y1), width * box.x1, height * (1 - box.y0))
    limits = {"x": ax.get_xlim(), "y": ax.get_ylim()}
    return {
        "box": [round(corner, 2) for corner in corners],
        **{name: [float(f"{end:.6g}") for end in ends] for name, ends in limits.items()},
        "log_x": ax.get_xscale() == "log",
        "log_y": ax.get_yscale() == "log",
    }
