"""The possible changes of the project's source, and the random draw of some of them."""

from __future__ import annotations

import ast
import difflib
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tests.mutants.operators import changes_of
from tests.mutants.source import Change, Source, defaults_in

SCOPE = (
    *(
        "aggregators/*.py",
        "hetfl/submodel.py",
        "hetfl/entries.py",
        "hetfl/part.py",
        "hetfl/updates.py",
        "hetfl/types.py",
        "hetfl/codes.py",
    ),
    *("hetfl/permutation.py", "hetfl/seeding.py", "hetfl/packing.py", "hetfl/runs/metrics_file.py"),
    *("hetfl/federation/*.py", "hetfl/compression/*.py", "hetfl/clustering/*.py", "hetfl/selection/*.py"),
    *("hetfl/local/**/*.py", "hetfl/wire/*.py", "hetfl/data/*.py", "hetfl/fleet/*.py", "hetfl/methods/*.py"),
    *("hetfl/parts/**/*.py", "hetfl/pruning/**/*.py", "hetfl/value/*.py", "hetfl/downlink/*.py", "hetfl/hooks/*.py"),
    *("hetfl/store/*.py", "hetfl/analysis/*.py", "hetfl/report/*.py", "hetfl/accounting/*.py", "hetfl/objectives/*.py"),
    *("hetfl/defence/*.py", "hetfl/unlearning/*.py", "hetfl/levels/*.py"),
)
"""Files that are changed: all code that computes numbers of a run or a report. Add new folders here."""
APPEARANCE = (
    *("hetfl/analysis/*plots.py", "hetfl/analysis/figures.py", "hetfl/report/pictures.py"),
    *("hetfl/report/wording.py", "hetfl/report/document.py", "hetfl/report/rendering.py", "hetfl/report/writing.py"),
    *("hetfl/report/composing.py", "hetfl/report/figures.py"),
)
"""Files that are not changed: they only make text and drawings."""
WEIGHTS = {"constant": 0.25, "condition": 0.5, "negation": 0.5}
"""Relative probability of a kind of change, 1 by default; less for kinds that are frequent and mostly noticed."""
PER_FUNCTION = 3
"""Largest number of drawn changes in one function."""


@dataclass(frozen=True)
class Mutant:
    """One change of the source.

    Attributes:
        path: file, relative to the root.
        line: line of the change.
        function: qualified name of the enclosing function; "" outside of all functions.
        operator: kind of the change.
        old: the changed lines before.
        new: the changed lines after.
        source: the original file.
        change: the replaced piece of text.
        is_planted: True for a hand-written plausible bug, False for a drawn change.
    """

    path: str
    line: int
    function: str
    operator: str
    old: str
    new: str
    source: Source = field(repr=False)
    change: Change = field(repr=False)
    is_planted: bool = False

    @classmethod
    def of(cls, path: str, source: Source, change: Change, planted: bool = False) -> Mutant:
        """Return the mutant of a change of a file."""
        line = source.line(change.start)
        lines = source.lines_of(change)
        return cls(path, line, source.function_at(line), change.operator, *lines, source, change, planted)

    @property
    def text(self) -> str:
        """The whole changed file."""
        return self.source.applied(self.change)

    @property
    def is_valid(self) -> bool:
        """Whether the changed file is a valid program that differs from the original."""
        try:
            return ast.dump(ast.parse(self.text)) != ast.dump(self.source.tree)
        except SyntaxError:
            return False

    @property
    def place(self) -> str:
        """Path and line, in the form that ``--only`` accepts."""
        return f"{self.path}:{self.line}"

    def diff(self) -> str:
        """Return the change as a unified diff without file names."""
        before, after = self.source.raw.decode().splitlines(), self.text.splitlines()
        return "\n".join(list(difflib.unified_diff(before, after, n=1, lineterm=""))[2:])


def files_in_scope(root: Path, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Return the files in scope that match a pattern, relative to the root, sorted."""
    paths = sorted({path.relative_to(root).as_posix() for pattern in SCOPE for path in root.glob(pattern)})
    return [
        path
        for path in paths
        if not any(fnmatchcase(path, pattern) for pattern in APPEARANCE)
        and any(fnmatchcase(path, pattern) for pattern in patterns)
    ]


def mutants_of(root: Path, paths: Iterable[str]) -> Iterator[Mutant]:
    """Yield every change of some files; a few of them are not valid programs.

    Args:
        root: root of the project.
        paths: files, relative to the root.
    """
    every_file = [root / path for path in files_in_scope(root)]
    defaults: defaultdict[str, set[str]] = defaultdict(set)
    for file in every_file:
        for name, arguments in defaults_in(ast.parse(file.read_text(encoding="utf-8"))):
            defaults[name] |= arguments
    for path in paths:
        source = Source((root / path).read_text(encoding="utf-8"))
        for change in changes_of(source, defaults):
            yield Mutant.of(path, source, change)


def drawn(mutants: Iterable[Mutant], seed: int, number: int) -> list[Mutant]:
    """Return the mutants that a seed draws: at most one per line and :data:`PER_FUNCTION` per function.

    The order is a hash of the seed, the old text and the new text, and does not depend on their position. So most draws
    stay the same when the source changes elsewhere or is moved.

    Args:
        mutants: all candidates.
        seed: any integer.
        number: number of mutants to draw.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    keyed = []
    for mutant in mutants:
        key = (mutant.function, mutant.old, mutant.new)
        keyed.append((_turn(seed, mutant, seen[key]), mutant))
        seen[key] += 1
    lines: Counter[str] = Counter()
    functions: Counter[tuple[str, str]] = Counter()
    chosen: list[Mutant] = []
    for _, mutant in sorted(keyed, key=lambda pair: pair[0]):
        if len(chosen) == number:
            break
        function = (mutant.path, mutant.function)
        if lines[mutant.place] or functions[function] >= PER_FUNCTION:
            continue
        if mutant.is_valid:
            lines[mutant.place] += 1
            functions[function] += 1
            chosen.append(mutant)
    return chosen


def _turn(seed: int, mutant: Mutant, occurrence: int) -> float:
    """Return a mutant's key in a weighted draw without replacement (Efraimidis and Spirakis 2006)."""
    names = (str(seed), mutant.function, mutant.old, mutant.new, str(occurrence))
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 1)
    return -math.log(uniform) / WEIGHTS.get(mutant.operator, 1.0)
