"""Measures once per test file which functions its tests call; the results are kept in an ignored folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.mutants.population import files_in_scope

PROCESSES = (
    *("tests/test_flower_federation.py", "tests/test_flower_commands.py", "tests/test_flower_child.py"),
    *("tests/test_resilience.py", "tests/test_packaging.py", "tests/test_notebooks.py", "tests/test_benchmark*.py"),
    *("tests/test_compare.py", "tests/test_heap.py", "tests/test_layers.py", "tests/test_mutants*.py"),
)
"""Excluded test files: they run other processes or inspect the source tree, so they are slow or call no functions."""
SHARPEST = "tests/test_reference_*.py"
"""Test files that compare whole runs with an independent implementation: they notice most changes of shared code."""
MANY = 100
"""Number of tests from which on a function is shared code."""


@dataclass(frozen=True)
class MeasuredTest:
    """A test that calls a given function.

    Attributes:
        name: node id of the test.
        seconds: duration of the test.
        functions: number of the project's functions that the test calls.
    """

    name: str
    seconds: float
    functions: int

    @property
    def file(self) -> str:
        """The test file."""
        return self.name.split("::")[0]

    @property
    def cost(self) -> float:
        """Priority of the test: small for quick tests that call few functions."""
        return (0.02 + self.seconds) * self.functions


def files_of_tests(root: Path, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Return the test files that match a pattern, relative to the root, including files with doctests."""
    files = [path.relative_to(root).as_posix() for path in sorted(root.glob("tests/test_*.py"))]
    kept = [file for file in files if not any(fnmatchcase(file, pattern) for pattern in PROCESSES)]
    examples = [path for path in files_in_scope(root) if ">>> " in (root / path).read_text(encoding="utf-8")]
    kept += [path if path.startswith("hetfl/") else f"hetfl/{path}" for path in examples]
    return [file for file in kept if any(fnmatchcase(file, pattern) for pattern in patterns)]


class Coverage:
    """The measured coverage: one JSON file per test file.

    A measurement is valid until one of these files changes: the test file, the helper modules of ``tests`` that it
    imports, and the source files whose functions it calls.

    Args:
        root: root folder of the project.
        folder: folder of the measurements.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._digests: dict[str, str] = {}

    def _digest(self, paths: Iterable[str]) -> str:
        for path in paths:
            if path not in self._digests:
                file = self.root / path
                content = file.read_bytes() if file.is_file() else b""
                self._digests[path] = hashlib.sha256(content).hexdigest()
        return hashlib.sha256("".join(self._digests[path] for path in paths).encode()).hexdigest()

    def _state(self, file: str, functions: Sequence[str]) -> str:
        sources = sorted({name.split("::")[0] for name in functions})
        return self._digest([*self._with_helpers(file), *sources])

    def _with_helpers(self, file: str) -> list[str]:
        """Return a test file and all modules of ``tests`` that it imports, directly or indirectly."""
        files, waiting = {file, "tests/conftest.py"}, [file, "tests/conftest.py"]
        while waiting:
            text = (self.root / waiting.pop()).read_text(encoding="utf-8")
            imported = {f"tests/{name}.py" for name in re.findall(r"^from tests\.(\w+) import", text, re.MULTILINE)}
            waiting += imported - files
            files |= imported
        return sorted(files)

    def file_of(self, file: str) -> Path:
        """Return the path of a test file's measurement."""
        return self.folder / (file.replace("/", ".") + ".json")

    def _read(self, file: str) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = json.loads(self.file_of(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if kept.get("state") == self._state(file, self._called(kept)) else None

    @staticmethod
    def _called(kept: Mapping[str, Any]) -> list[str]:
        numbers = set().union(*(numbers for _, numbers in kept["tests"].values()))
        return [kept["functions"][number - 1] for number in sorted(numbers)]

    def unknown(self, files: Iterable[str]) -> list[str]:
        """Return the test files without a valid measurement."""
        return [file for file in files if self._read(file) is None]

    def keep(self, files: Iterable[str], measured: Path) -> None:
        """Store what a recorder has measured of some test files; do nothing if the recorder was stopped early."""
        self.folder.mkdir(exist_ok=True)
        whole: dict[str, Any] = {"functions": [], "tests": {}}
        if measured.is_file():
            whole = json.loads(measured.read_text(encoding="utf-8"))
        for file in files:
            tests = {name: each for name, each in whole["tests"].items() if name.split("::")[0] == file}
            kept = {"functions": whole["functions"], "tests": tests}
            state = self._state(file, self._called(kept))
            self.file_of(file).write_text(json.dumps({**kept, "state": state}), encoding="utf-8")

    def load(self, files: Iterable[str]) -> None:
        """Load the measurements of some test files."""
        self._tests: defaultdict[str, list[MeasuredTest]] = defaultdict(list)
        for file in files:
            kept = self._read(file)
            for name, (seconds, numbers) in ({} if kept is None else kept["tests"]).items():
                test = MeasuredTest(name, seconds, len(numbers))
                for number in numbers:
                    self._tests[kept["functions"][number - 1]].append(test)  # type: ignore[index]

    def tests_of(self, path: str, function: str) -> list[MeasuredTest]:
        """Return the tests that call a function, in order of their cost.

        A further variant of a parametrised test comes later than its cost alone would place it. For shared code, the
        comparisons of whole runs come first.

        Args:
            path: source file.
            function: qualified name; "" for code outside of functions, which gives all tests of the file's functions.
                Calls of compiled functions are not seen; they have all tests of the files that import the module.
        """
        calling = self._tests[f"{path}::{function}"] if function else self._tests_of_file(path)
        if not calling and "numba" in (self.root / path).read_text(encoding="utf-8"):
            calling = self._tests_of_importers(path)
        variants: Counter[str] = Counter()
        turns: dict[str, float] = {}
        for test in sorted(calling, key=lambda each: (each.cost, each.name)):
            base = test.name.split("[")[0]
            turns[test.name] = test.cost * (1 + variants[base] / 2)
            variants[base] += 1
        is_shared = len(calling) >= MANY

        def turn(test: MeasuredTest) -> tuple[bool, float, str]:
            return not (is_shared and fnmatchcase(test.file, SHARPEST)), turns[test.name], test.name

        return sorted(calling, key=turn)

    def _tests_of_file(self, path: str) -> list[MeasuredTest]:
        names = [name for name in self._tests if name.startswith(f"{path}::")]
        return list({test.name: test for name in names for test in self._tests[name]}.values())

    def _tests_of_importers(self, path: str) -> list[MeasuredTest]:
        package, _, module = path.removesuffix(".py").replace("/", ".").rpartition(".")
        line = f"from {package} import {module}"
        files = [file for file in files_in_scope(self.root) if line in (self.root / file).read_text(encoding="utf-8")]
        return list({test.name: test for file in files for test in self._tests_of_file(file)}.values())
