"""docs/methods.md lists every method with its paper, as the first line of its configuration names it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
KINDS = ("aggregator", "assignment", "attack", "clustering", "compressor", "downlink", "hooks", "parts", "schedule")
ROWS = [re.split(r" (?<!\\)\| ", line.strip("| \n")) for line in TEXT.splitlines() if line.startswith("| ")]
METHODS = {row[1].strip("`"): row for row in ROWS if len(row) == 4 and row[1].startswith("`")}


def first_line(name: str) -> str:
    return (ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]


def test_every_method_has_one_row_with_its_paper() -> None:
    names = sorted(f"method/{path.stem}" for path in (ROOT / "configs/method").glob("*.yaml"))
    rows = [row[1].strip("`") for row in ROWS if row[1].startswith("`method/")]
    assert sorted(rows) == names
    for name in names:
        assert f"# {METHODS[name][0]}" in first_line(name), name


def test_rows_say_what_differs() -> None:
    assert all(row[2] and row[3] for row in METHODS.values())


def test_experiments_of_papers_exist() -> None:
    for name in METHODS:
        assert (ROOT / f"configs/{name}.yaml").is_file(), name


def test_every_piece_has_a_row_with_the_first_line_of_its_file() -> None:
    rows = {row[0].strip("`"): row[1] for row in ROWS if len(row) == 2 and row[0].startswith("`")}
    folders = (*KINDS, "selection")
    assert sorted(rows) == sorted(
        f"{kind}/{path.stem}" for kind in folders for path in (ROOT / f"configs/{kind}").iterdir()
    )
    for name, text in rows.items():
        assert first_line(name).startswith(f"# {text}"), name
