"""Measure whether the tests notice bugs: change one place of the source, run the tests of that place, and repeat.

Prints each change that no test noticed, and the tests that were run. The exit status is 1 if a plausible bug of
``plausible.yaml`` survives or is stale, or if fewer than ``--at-least`` per cent of the drawn changes are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tests.mutants.covering import Coverage, files_of_tests
from tests.mutants.population import Mutant, drawn, files_in_scope, mutants_of
from tests.mutants.server import leave
from tests.mutants.summary import Tally
from tests.mutants.tables import StaleEntry, planted, read_bugs, read_equivalents, reason_of, unmatched
from tests.mutants.trials import Bench

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="draws the changes (default: %(default)s)")
    parser.add_argument("--number", type=int, default=150, help="how many are drawn (default: %(default)s)")
    parser.add_argument("--files", nargs="+", default=["*"], metavar="PATTERN", help="only changes of these files")
    parser.add_argument("--tests", nargs="+", default=["*"], metavar="PATTERN", help="only tests of these files")
    parser.add_argument("--only", metavar="PATH:LINE", help="all changes of one line instead")
    parser.add_argument("--plausible", action="store_true", help="only the bugs of plausible.yaml")
    parser.add_argument("--drawn", action="store_true", help="only drawn changes, not the bugs of plausible.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="changes that are tried at once (default: %(default)s)")
    parser.add_argument(
        "--budget", type=float, default=240.0, help="seconds of tests for one change (default: %(default)s)"
    )
    parser.add_argument("--at-least", type=float, default=95.0, help="per cent to be noticed (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the changes and run nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / ".mutants", help="folder of measurements (%(default)s)")
    return parser.parse_args(arguments)


def chosen(given: argparse.Namespace, tally: Tally) -> list[Mutant]:
    """Return the mutants to try; report excluded mutants to the tally."""
    mutants: list[Mutant] = []
    if not given.drawn and not given.only:
        for bug in read_bugs():
            try:
                mutants.append(planted(bug, ROOT))
            except StaleEntry as error:
                tally.stale.append(str(error))
    if given.plausible:
        return mutants
    equivalents = read_equivalents()
    everything = list(mutants_of(ROOT, files_in_scope(ROOT)))
    tally.unmatched = unmatched(equivalents, everything)
    paths = set(files_in_scope(ROOT, given.files))
    if given.only:
        draw = [each for each in everything if each.place == given.only and each.is_valid]
    else:
        draw = drawn([each for each in everything if each.path in paths], given.seed, given.number)
    for mutant in draw:
        reason = reason_of(mutant, equivalents)
        if reason is None:
            mutants.append(mutant)
        else:
            tally.equivalent.append((mutant, reason))
    return mutants


def shared_out(work: Sequence[T], benches: Sequence[Bench], do: Callable[[Bench, T], object]) -> None:
    """Distribute pieces of work over benches; each piece goes to the next free bench.

    Raises:
        BaseException: the first exception of any piece.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for each in work:
        waiting.put(each)

    def serve(bench: Bench) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                do(bench, waiting.get_nowait())

    with ThreadPoolExecutor(max_workers=len(benches)) as pool:
        try:
            for served in as_completed([pool.submit(serve, bench) for bench in benches]):
                served.result()
        except BaseException:  # also Ctrl-C: the pool waits for its threads, and these wait for their benches
            for bench in benches:
                bench.terminate()
            raise


def know(coverage: Coverage, files: Sequence[str], benches: Sequence[Bench]) -> None:
    """Measure the coverage of test files that have no valid measurement, and load the coverage of all files."""
    unknown = coverage.unknown(files)
    if unknown:
        print(f"measuring which functions the tests of {len(unknown)} files call ...", flush=True)
    examples = [file for file in unknown if not file.startswith("tests/")]  # doctests are quick
    groups = [[file] for file in unknown if file not in examples] + ([examples] if examples else [])
    shared_out(groups, benches, lambda bench, group: bench.measure(group, coverage))
    coverage.load(files)


def main() -> int:
    """Run from the command line."""
    given, tally = options(), Tally()
    mutants = chosen(given, tally)
    if given.list:
        for mutant in mutants:
            print(f"{mutant.place}  {mutant.operator}\n{mutant.diff()}\n")
        return tally.report(given.at_least)
    print(f"seed {given.seed}: {len(mutants)} changes to be tried", flush=True)
    signal.signal(signal.SIGTERM, leave)
    try:
        _try(mutants, given, tally)
    finally:  # also reports the results of an interrupted run
        status = tally.report(given.at_least)
    return status


def _try(mutants: Sequence[Mutant], given: argparse.Namespace, tally: Tally) -> None:
    coverage = Coverage(ROOT, given.cache)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ExitStack() as stack:
        benches = [stack.enter_context(Bench(ROOT, place)) for place in _places(Path(folder), given.jobs)]
        know(coverage, files_of_tests(ROOT, given.tests), benches)

        def attempt(bench: Bench, mutant: Mutant) -> None:
            tests = coverage.tests_of(mutant.path, mutant.function)
            tally.add(bench.attempt(mutant, tests, given.budget), len(mutants))

        shared_out(mutants, benches, attempt)


def _places(folder: Path, number: int) -> Iterator[Path]:
    for job in range(number):
        place = folder / str(job)
        place.mkdir()
        yield place


if __name__ == "__main__":
    sys.exit(main())
