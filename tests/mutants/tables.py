"""Two hand-written tables: plausible bugs that must be noticed, and changes that do not change behaviour.

``plausible.yaml`` has an entry for each bug that the tests once missed: ``bug`` (a description), ``path``, ``old`` and
``new`` (a text and its replacement). ``equivalent.yaml`` has an entry for each drawn change that no test can notice:
``function``, ``old`` and ``new`` (whole lines) and ``reason``. Both tables are matched by content and ignore line
breaks, so moving or reformatting code does not affect them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutants.population import Mutant, files_in_scope
from tests.mutants.source import Change, Source

HERE = Path(__file__).parent
PLAUSIBLE = HERE / "plausible.yaml"
EQUIVALENT = HERE / "equivalent.yaml"


class StaleEntry(Exception):
    """An entry of a table does not match the source any more; the message says where its text may be now."""


@dataclass(frozen=True)
class Bug:
    """An entry of ``plausible.yaml``; its keys are described above."""

    bug: str
    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Equivalent:
    """An entry of ``equivalent.yaml``; its keys are described above."""

    function: str
    old: str
    new: str
    reason: str


def read_bugs(file: Path = PLAUSIBLE) -> list[Bug]:
    """Return the table of plausible bugs."""
    return [Bug(**entry) for entry in _entries(file)]


def read_equivalents(file: Path = EQUIVALENT) -> list[Equivalent]:
    """Return the table of changes that do not change behaviour."""
    return [Equivalent(**entry) for entry in _entries(file)]


def _entries(file: Path) -> list[dict[str, Any]]:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or []


def planted(bug: Bug, root: Path) -> Mutant:
    """Return the mutant of a plausible bug.

    Raises:
        StaleEntry: the old text does not occur exactly once in its file, or the changed file is not valid Python.
    """
    file = root / bug.path
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    places = _places(bug.old, text)
    if len(places) != 1:
        raise StaleEntry(f"{bug.bug}: {len(places)} places in {bug.path}; {_advice(bug, root)}")
    start, stop = places[0]
    change = Change(len(text[:start].encode()), len(text[:stop].encode()), bug.new.strip(), bug.bug)
    mutant = Mutant.of(bug.path, Source(text), change, planted=True)
    if not mutant.is_valid:
        raise StaleEntry(f"{bug.bug}: {bug.path} with it is no valid program, or no other one")
    return mutant


def _places(old: str, text: str) -> list[tuple[int, int]]:
    """Return the spans of a text, with any spaces and line breaks."""
    pattern = r"\s+".join(map(re.escape, old.split()))
    return [match.span() for match in re.finditer(pattern, text)]


def _advice(bug: Bug, root: Path) -> str:
    """Return the current place of an entry's text, or the line that is most similar to its first line."""
    texts = {path: (root / path).read_text(encoding="utf-8") for path in files_in_scope(root)}
    moved = [
        f"{path}:{text.count(chr(10), 0, start) + 1}"
        for path, text in texts.items()
        for start, _ in _places(bug.old, text)
    ]
    if moved:
        return f"its text stands in {', '.join(moved)}"
    lines = {line.strip(): path for path, text in texts.items() for line in text.splitlines()}
    near = difflib.get_close_matches(bug.old.strip().splitlines()[0].strip(), lines, n=3, cutoff=0.5)
    return "most like it: " + "; ".join(f"{line!r} in {lines[line]}" for line in near) if near else "nothing is like it"


def reason_of(mutant: Mutant, equivalents: Iterable[Equivalent]) -> str | None:
    """Return why a mutant does not change behaviour, if the table has it; else None."""
    key = _key(mutant.function, mutant.old, mutant.new)
    return next((each.reason for each in equivalents if _key(each.function, each.old, each.new) == key), None)


def unmatched(equivalents: Sequence[Equivalent], mutants: Iterable[Mutant]) -> list[Equivalent]:
    """Return the entries that match no change of the current source."""
    keys = {_key(mutant.function, mutant.old, mutant.new) for mutant in mutants}
    return [each for each in equivalents if _key(each.function, each.old, each.new) not in keys]


def _key(function: str, old: str, new: str) -> tuple[str, str, str]:
    return function, " ".join(old.split()), " ".join(new.split())
