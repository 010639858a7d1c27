"""Draws the pictures of the documentation's first page anew: ``python docs/pictures.py --help``.

``--report FOLDER`` also takes a picture of the top of ``FOLDER/report.html`` with Chromium. The picture in the tree is
of the comparison in docs/tutorials/width_or_depth.md.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
LEVELS = ("#1d4f9e", "#4d86d6", "#97bdf0", "#dbe8fb")
"""Colours of the parts, from the smallest level to the whole model."""
CAPTIONS = (
    ("Width", "the first channels", "of every layer"),
    ("Depth", "the first stages,", "each with an exit"),
    ("Rank", "the first ranks of adapters", "beside a frozen net"),
    ("Mask", "the entries of a weight", "that a score prefers"),
)
PANEL, TOP, SIDE = 230, 84, 150
"""Width of a panel; top and side of the drawing in it, in pixels."""
STYLE = """
  .page { fill: #ffffff } .text { fill: #1f2430 } .faint { fill: #5a6270 } .frozen { fill: #e4e6ea }
  rect, path { stroke: #5a6270; stroke-width: 1 } .page { stroke: none }
  text { font-family: sans-serif; text-anchor: middle; font-size: 14px } .name { font-size: 19px; font-weight: bold }
  @media (prefers-color-scheme: dark) {
    .page { fill: #171a20 } .text { fill: #eceff4 } .faint { fill: #b4bcc8 } .frozen { fill: #3a404a }
    rect, path { stroke: #b4bcc8 }
  }
"""


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """Return a rectangle; a colour that is no number of a colour is a class of the style sheet."""
    fill = f'fill="{colour}"' if colour.startswith("#") else f'class="{colour}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {fill}/>'


def words(x: float, y: float, text: str, kind: str) -> str:
    """Return a centred line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>'


def smallest(position: int) -> str:
    """Return the colour of the smallest level that holds a channel or rank: 1, 2, 4 or 8 of eight."""
    return LEVELS[math.ceil(math.log2(position + 1))]


def width(left: float) -> list[str]:
    """Draw three layers of eight channels."""
    side = SIDE / 8
    return [
        box(left + layer * 58, TOP + channel * side, 34, side, smallest(channel))
        for layer in range(3)
        for channel in range(8)
    ]


def depth(left: float) -> list[str]:
    """Draw four stages in a row, each with an arrow to its exit."""
    shapes = []
    for stage, colour in enumerate(LEVELS):
        x = left + stage * 39
        shapes.append(box(x, TOP, 33, 104, colour))
        shapes.append(f'<path d="M{x + 16.5:.1f} {TOP + 104} v26 m-6 -9 l6 9 l6 -9" fill="none"/>')
    return shapes


def rank(left: float) -> list[str]:
    """Draw a frozen weight, and the ranks of its two factors."""
    side = 96.0
    shapes = [box(left, TOP + SIDE - side, side, side, "frozen"), words(left + side / 2, 192, "frozen", "faint")]
    step = (SIDE - side - 8) / 8
    for position in range(8):
        shapes.append(box(left + side + 8 + position * step, TOP + SIDE - side, step, side, smallest(position)))
        shapes.append(box(left, TOP + (7 - position) * step, side, step, smallest(position)))
    return shapes


def mask(left: float) -> list[str]:
    """Draw the entries of a weight; each level holds twice as many as the next smaller one."""
    cells = [(row, column) for row in range(10) for column in range(10)]
    random.Random(3).shuffle(cells)
    side, held = SIDE / 10, [12, 25, 50, 100]
    return [
        box(
            left + column * side, TOP + row * side, side, side, LEVELS[next(i for i, n in enumerate(held) if place < n)]
        )
        for place, (row, column) in enumerate(cells)
    ]


def submodels() -> str:
    """Return the drawing of the four kinds of sub-models, as SVG; it has its own page, light or dark."""
    across = PANEL * len(CAPTIONS)
    shapes = [box(0, 0, across, 296, "page")]
    for number, (draw, (name, first, second)) in enumerate(zip((width, depth, rank, mask), CAPTIONS, strict=True)):
        middle = PANEL * (number + 0.5)
        shapes += [words(middle, 28, name, "name text"), words(middle, 49, first, "text")]
        shapes += [words(middle, 67, second, "text"), *draw(middle - SIDE / 2)]
    for level, colour in enumerate(LEVELS):
        shapes.append(box(across / 2 - 60 + level * 30, 258, 30, 16, colour))
    shapes.append(words(across / 2 - 118, 271, "smallest device", "text"))
    shapes.append(words(across / 2 + 168, 271, "largest device: the whole model", "text"))
    title = "One net, and the parts of it that devices of four sizes train: by width, depth, rank and mask"
    size = f'viewBox="0 0 {across} 296" width="{across}" height="296"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{title}</title>\n<style>{STYLE}</style>'
    return "\n".join([head, *shapes, "</svg>", ""])


def photograph(page: Path, picture: Path, width: int = 1440, height: int = 900) -> None:
    """Take a picture of the top of a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("Expected the command chromium or google-chrome but got neither")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}"]
        subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation's first page.")
    parser.add_argument("--report", type=Path, help="a folder with the report.html of which a picture is taken")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where pictures go")
    options = parser.parse_args(arguments)
    (options.out / "submodels.svg").write_text(submodels(), encoding="utf-8")
    if options.report is not None:
        photograph(options.report / "report.html", options.out / "report.png")


if __name__ == "__main__":
    main()
