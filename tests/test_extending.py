"""Every Python block of docs/extending.md runs after the first block, which all of them need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "extending.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
HEADINGS = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
LONGEST = 25
"""Largest number of code lines of an example, without blank lines, imports and docstrings."""


def section_of(block: str) -> str:
    headings: list[str] = re.findall(r"^## (.*)$", TEXT[: TEXT.index(block)], re.MULTILINE)
    return headings[-1]


NAMES = [section_of(block) for block in BLOCKS[1:]]


def test_every_kind_of_extension_has_an_example() -> None:
    assert set(HEADINGS) - {"Rules for everything"} == set(NAMES)


def test_the_table_of_contents_lists_every_section() -> None:
    links = re.findall(r"\]\(#([a-z-]+)\)", TEXT[: TEXT.index("```python")])
    assert sorted(links) == sorted(heading.lower().replace(" ", "-") for heading in HEADINGS)


@pytest.mark.parametrize("number", range(1, len(BLOCKS)), ids=NAMES)
def test_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": f"guide_{number}"}
    for block in (BLOCKS[0], BLOCKS[number]):
        exec(compile(block, f"{GUIDE.name}, block {BLOCKS.index(block)}", "exec"), names)  # noqa: S102


@pytest.mark.parametrize("number", range(1, len(BLOCKS)), ids=NAMES)
def test_example_is_short(number: int) -> None:
    code = re.sub(r'^ *""".*?"""$', "", BLOCKS[number], flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(lines) < LONGEST, NAMES[number - 1]
