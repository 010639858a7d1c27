"""Pytest plugins for a copy of the project: record the functions that tests call, or run tests until one fails."""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.mutants.source import Source

MOST_FUNCTIONS = 1 << 16


def _without_deadlines(*phases: str) -> None:
    """Disable Hypothesis deadlines and its database; run only the given phases, or all phases if none are given."""
    from hypothesis import HealthCheck, Phase, settings

    chosen = [Phase[name] for name in phases] or list(Phase)
    checks = list(HealthCheck)
    settings.register_profile("mutants", deadline=None, database=None, suppress_health_check=checks, phases=chosen)
    settings.load_profile("mutants")


class Functions:
    """Numbers the project's functions when they are first called; forked processes share the recorded calls.

    Args:
        root: root of the project; functions outside of it are ignored.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root) + os.sep
        self._numbers: dict[tuple[str, int], int] = {}
        self.names: dict[str, int] = {}
        self._called = mmap.mmap(-1, MOST_FUNCTIONS)
        self._sources = cache(lambda file: Source(Path(file).read_text(encoding="utf-8")))

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """Record a call; this is a trace function for ``sys.settrace``."""
        key = (frame.f_code.co_filename, frame.f_code.co_firstlineno)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._number(*key)
        if number:
            self._called[number] = 1

    def _number(self, file: str, line: int) -> int:
        path = os.path.realpath(file)
        inside = path.removeprefix(self._root)
        if inside == path or not inside.startswith(("hetfl", "aggregators", "models")) or not os.path.isfile(path):
            return 0
        function = self._sources(path).function_at(line)
        return self.names.setdefault(f"{inside}::{function}", len(self.names) + 1) if function else 0

    def number_all(self, paths: Iterable[str]) -> None:
        """Number every function of some files now, so that forks use the same numbers."""
        for path in paths:
            for _, _, function in self._sources(self._root + path).functions:
                self.names.setdefault(f"{path}::{function}", len(self.names) + 1)

    def take_numbers(self) -> set[int]:
        """Return the numbers of the functions called since the last call of this method, and reset the record."""
        numbers = {number for number in range(1, len(self.names) + 1) if self._called[number]}
        self._called[: len(self.names) + 1] = bytes(len(self.names) + 1)
        return numbers


class Recorder:
    """Writes the functions that each passing test and its fixtures call, and the test's duration, into a file.

    Args:
        root: root of the project.
        paths: source files whose functions are recorded.
        out: output file.
    """

    def __init__(self, root: Path, paths: Sequence[str], out: Path) -> None:
        self.functions, self.out = Functions(root), out
        self.functions.number_all(paths)
        self.tests: dict[str, tuple[float, set[int]]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._unusable: set[str] = set()
        self._of_fixtures: dict[str, set[int]] = {}
        self._before: set[int] = set()

    def pytest_configure(self) -> None:
        """Configure Hypothesis."""
        _without_deadlines()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, None, None]:
        """Record the calls of shared fixtures: a test that reuses a fixture also depends on them."""
        if fixturedef.scope == "function":
            yield
            return
        self._before |= self.functions.take_numbers()
        yield
        called = self.functions.take_numbers()
        self._of_fixtures.setdefault(fixturedef.argname, set()).update(called)
        self._before |= called

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, None, None]:
        """Record the calls of a test."""
        self.functions.take_numbers()
        self._before = set()
        threading.settrace(self.functions)
        sys.settrace(self.functions)
        yield
        sys.settrace(None)
        threading.settrace(None)
        called = self.functions.take_numbers() | self._before
        for name in getattr(item, "fixturenames", ()):
            called |= self._of_fixtures.get(name, set())
        if item.nodeid not in self._unusable:
            self.tests[item.nodeid] = (self._seconds[item.nodeid], called)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the durations of a test's phases, and drop a test that fails."""
        self._seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self._unusable.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the output file."""
        tests = {test: (round(seconds, 4), sorted(called)) for test, (seconds, called) in self.tests.items()}
        self.out.write_text(json.dumps({"functions": list(self.functions.names), "tests": tests}), encoding="utf-8")


class Chosen:
    """Runs chosen tests in order, and ends the process at the first failure.

    Args:
        tests: node ids of the tests.
        report: file descriptor that receives a line of JSON when a test begins and when one fails.
    """

    def __init__(self, tests: Sequence[str], report: int) -> None:
        self.turns = {test: turn for turn, test in enumerate(tests)}
        self._report = report

    def tell(self, **what: object) -> None:
        """Send one line of JSON."""
        os.write(self._report, json.dumps(what).encode() + b"\n")

    def pytest_configure(self) -> None:
        """Configure Hypothesis: a failing example is not shrunk, since any failure is enough."""
        _without_deadlines("explicit", "generate")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep only the chosen tests, in their given order."""
        kept = [item for item in items if item.nodeid in self.turns]
        items[:] = sorted(kept, key=lambda item: self.turns[item.nodeid])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Report that a test begins."""
        self.tell(begins=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End the process if the test fails."""
        if report.failed:
            self.tell(failed=report.nodeid)
            os._exit(1)
