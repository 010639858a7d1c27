"""`make mutants`: its draw, its tables, its measurements, and bugs that it tries in a small project."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.mutants.__main__ import shared_out
from tests.mutants.copies import changed
from tests.mutants.covering import Coverage, MeasuredTest
from tests.mutants.population import Mutant, drawn, files_in_scope, mutants_of
from tests.mutants.tables import (
    Bug,
    Equivalent,
    StaleEntry,
    planted,
    read_bugs,
    read_equivalents,
    reason_of,
    unmatched,
)
from tests.mutants.trials import Bench, batches

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project of one small file, its tests, and this tool."""
    root = tmp_path / "project"
    (root / "hetfl/compression").mkdir(parents=True)
    shutil.copytree(ROOT / "tests/mutants", root / "tests/mutants")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n')
    (root / "hetfl/compression/scale.py").write_text(SCALE)
    (root / "tests/conftest.py").write_text("")
    (root / "tests/test_scale.py").write_text(TESTS)
    return root


SCALE = """def scaled(a, b):
    return a * b


def halved(a):
    steps = 0
    while a > 1:
        a = a // 2
        steps += 1
    return steps


def unused(a):
    return a + 1
"""
TESTS = """import pytest
from hetfl.compression.scale import halved, scaled


@pytest.mark.parametrize("a", [1, 2])
def test_scaled(a):
    assert scaled(a, 1) == a


def test_halved():
    assert halved(8) == 3


def test_that_fails():
    assert scaled(1, 1) == 2
"""


def mutants(root: Path) -> dict[str, Mutant]:
    return {f"{mutant.line}: {mutant.new}": mutant for mutant in mutants_of(root, files_in_scope(root))}


def test_the_draw_is_a_function_of_the_seed_and_the_changed_text(project: Path) -> None:
    def draw(seed: int) -> list[str]:
        chosen = drawn(mutants_of(project, files_in_scope(project)), seed, 4)
        assert len({mutant.line for mutant in chosen}) == len(chosen)
        return [mutant.new for mutant in chosen]

    first = draw(0)
    assert first == draw(0) != draw(1)
    file = project / "hetfl/compression/scale.py"
    file.write_text(f"import math\n\n{file.read_text()}")
    assert draw(0) == first


def test_the_number_of_draws_per_function_is_limited(project: Path) -> None:
    file = project / "hetfl/compression/scale.py"
    file.write_text("def f(a):\n" + "".join(f"    a{k} = {k}\n" for k in range(9)))
    assert len(drawn(mutants_of(project, files_in_scope(project)), 0, 9)) == 3


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("return a / b", "0 places in hetfl/compression/scale.py; most like it: 'return a * b' in"),
        ("return", "3 places in hetfl/compression/scale.py"),
        ("a * b", "no valid program"),
    ],
)
def test_a_stale_entry_reports_where_its_text_may_be(project: Path, old: str, message: str) -> None:
    with pytest.raises(StaleEntry, match=message.replace("*", r"\*")):
        planted(Bug("a bug", "hetfl/compression/scale.py", old, "a *"), project)


def test_a_stale_entry_names_the_file_with_its_text(project: Path) -> None:
    (project / "hetfl/compression/scale.py").rename(project / "hetfl/compression/other.py")
    with pytest.raises(StaleEntry, match="its text stands in hetfl/compression/other.py:2"):
        planted(Bug("a bug", "hetfl/compression/scale.py", "return a * b", "return a"), project)


def test_an_entry_is_found_with_any_line_breaks(project: Path) -> None:
    mutant = planted(Bug("a bug", "hetfl/compression/scale.py", "steps\n  +=   1", "steps += 2"), project)
    assert (mutant.line, mutant.function, mutant.is_planted) == (9, "halved", True)
    assert (
        mutant.diff()
        == "@@ -8,3 +8,3 @@\n         a = a // 2\n-        steps += 1\n+        steps += 2\n     return steps"
    )


def test_equivalent_changes_are_matched_by_content(project: Path) -> None:
    entry = Equivalent("halved", "steps  = 0", "steps = 1", "a reason")
    mutant = mutants(project)["6: steps = 1"]
    assert reason_of(mutant, [entry]) == "a reason"
    assert reason_of(mutants(project)["2: return (a)"], [entry]) is None
    assert unmatched([entry, Equivalent("other", "steps = 0", "steps = 1", "")], [mutant]) == [
        Equivalent("other", "steps = 0", "steps = 1", "")
    ]


def test_every_table_entry_matches_the_source() -> None:
    for bug in read_bugs():
        planted(bug, ROOT)
    assert unmatched(read_equivalents(), mutants_of(ROOT, files_in_scope(ROOT))) == []


def test_a_changed_file_is_restored(project: Path) -> None:
    file = project / "hetfl/compression/scale.py"
    before = file.stat().st_mtime_ns
    times = set()
    for number in range(2):
        with changed(file, "a = 1\n", number):
            assert file.read_text() == "a = 1\n"
            times.add(int(file.stat().st_mtime))
    assert file.read_text() == SCALE
    assert file.stat().st_mtime_ns == before
    assert len(times | {before // 10**9}) == 3


def test_batches_grow_and_stay_within_the_budget() -> None:
    tests = [
        MeasuredTest(f"tests/test_{k}.py::test", seconds, 1) for k, seconds in enumerate([1.0, 1.0, 2.5, 9.0, 1.0, 0.5])
    ]
    parts = [[test.seconds for test in part] for part in batches(tests, 6.1)]
    assert parts == [[1.0, 1.0], [2.5, 1.0, 0.5]]


@pytest.fixture
def bench(project: Path, tmp_path: Path) -> Iterator[tuple[Bench, Coverage]]:
    (tmp_path / "bench").mkdir()
    with Bench(project, tmp_path / "bench", preloaded=(), patience=1.0) as place:
        coverage = Coverage(project, tmp_path / "kept")
        assert coverage.unknown(["tests/test_scale.py"]) == ["tests/test_scale.py"]
        place.measure(["tests/test_scale.py"], coverage)
        assert coverage.unknown(["tests/test_scale.py"]) == []
        coverage.load(["tests/test_scale.py"])
        yield place, coverage


def test_a_bug_is_tried_only_with_the_tests_of_its_function(bench: tuple[Bench, Coverage], project: Path) -> None:
    place, coverage = bench
    everything = mutants(project)

    def attempt(key: str) -> tuple[str, str, int, int]:
        mutant = everything[key]
        trial = place.attempt(mutant, coverage.tests_of(mutant.path, mutant.function), budget=60)
        return trial.outcome, trial.test.removeprefix("tests/test_scale.py::"), trial.ran, len(trial.tests)

    assert attempt("2: return a / b") == ("survived", "", 2, 2)
    assert attempt("9: steps -= 1") == ("failed", "test_halved", 1, 1)
    assert attempt("8: a = a // (1)") == ("endless", "test_halved", 1, 1)
    assert attempt("14: return a + 2") == ("survived", "", 0, 0)
    assert (place.copy / "hetfl/compression/scale.py").read_text() == SCALE


@pytest.mark.slow
def test_an_ended_run_leaves_no_files_and_no_processes(
    bench: tuple[Bench, Coverage], project: Path, tmp_path: Path
) -> None:
    place, coverage = bench
    mutant, file = mutants(project)["8: a = a // (1)"], tmp_path / "process"
    tests = place.copy / "tests/test_scale.py"
    tests.write_text(f"import os\nfrom pathlib import Path\nPath({str(file)!r}).write_text(str(os.getpid()))\n{TESTS}")
    trial = threading.Thread(target=lambda: _ignoring_its_end(place, mutant, coverage))
    trial.start()
    while not (file.is_file() and file.read_text()):
        time.sleep(0.01)
    place.terminate()
    trial.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
    assert (place.copy / "hetfl/compression/scale.py").read_text() == SCALE


def test_an_interrupted_run_waits_for_started_trials() -> None:
    terminated, ended = threading.Event(), threading.Event()

    def do(bench: object, piece: int) -> None:
        time.sleep(0.2)  # until the main thread waits
        os.kill(os.getpid(), signal.SIGINT)
        if terminated.wait(10):
            time.sleep(0.1)
            ended.set()

    bench = cast(Bench, SimpleNamespace(terminate=terminated.set))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            shared_out([0], [bench], do)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def _ignoring_its_end(place: Bench, mutant: Mutant, coverage: Coverage) -> None:
    with contextlib.suppress(RuntimeError):
        place.attempt(mutant, coverage.tests_of(mutant.path, mutant.function), budget=60)


def test_compiled_functions_are_covered_by_the_tests_that_import_their_file(project: Path, tmp_path: Path) -> None:
    file = project / "hetfl/compression/scale.py"
    (file.parent / "kernels.py").write_text("import numba\n\n\ndef compiled():\n    pass\n")
    file.write_text(f"{SCALE}\n\ndef kernels():\n    from hetfl.compression import kernels\n")
    test, called = "tests/test_scale.py::test_halved", "hetfl/compression/scale.py::halved"
    (tmp_path / "measured").write_text(json.dumps({"functions": [called], "tests": {test: [0.1, [1]]}}))
    coverage = Coverage(project, tmp_path / "kept")
    coverage.keep(["tests/test_scale.py"], tmp_path / "measured")
    coverage.load(["tests/test_scale.py"])
    assert [each.name for each in coverage.tests_of("hetfl/compression/kernels.py", "compiled")] == [test]
    assert coverage.tests_of("hetfl/compression/scale.py", "scaled") == []


@pytest.mark.parametrize(("others", "first"), [(99, True), (98, False)])
def test_comparisons_of_whole_runs_come_first_for_shared_code(
    project: Path, tmp_path: Path, others: int, first: bool
) -> None:
    (project / "tests/test_reference_runs.py").write_text("")
    called = {f"tests/test_scale.py::test_{number}": [0.01, [1]] for number in range(others)}
    whole = "tests/test_reference_runs.py::test_whole"
    functions = ["hetfl/compression/scale.py::halved"]
    (tmp_path / "measured").write_text(json.dumps({"functions": functions, "tests": {**called, whole: [9.0, [1]]}}))
    coverage = Coverage(project, tmp_path / "kept")
    files = ["tests/test_scale.py", "tests/test_reference_runs.py"]
    coverage.keep(files, tmp_path / "measured")
    coverage.load(files)
    names = [each.name for each in coverage.tests_of("hetfl/compression/scale.py", "halved")]
    assert (names[0] == whole) == first
    assert (names[-1] == whole) != first


def test_measurements_are_valid_until_a_dependency_changes(
    bench: tuple[Bench, Coverage], project: Path, tmp_path: Path
) -> None:
    files = ["tests/test_scale.py"]
    for path in ("hetfl/compression/scale.py", "tests/test_scale.py", "tests/conftest.py"):
        file = project / path
        before = file.read_text()
        file.write_text(f"{before}# changed\n")
        assert Coverage(project, tmp_path / "kept").unknown(files) == files
        file.write_text(before)
        assert Coverage(project, tmp_path / "kept").unknown(files) == []
