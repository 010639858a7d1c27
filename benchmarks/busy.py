"""Rounds of local training beside a busy process: the slowest round relative to the median."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

from executors import executors
from round import local_rounds
from timing import parser, report
from work import Setting


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy during the context."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=100)
    options.add_argument("--workers", type=int, default=2, help="processes, and threads (default: %(default)s)")
    options.add_argument("--levels", default="d", help="levels, each a separate case (default: %(default)s)")
    given = options.parse_args()
    results = []
    for level in given.levels:
        setting = Setting(level)
        makes = {name: make for name, make in executors(given.workers, setting.cohort).items() if name != "Auto"}
        with neighbour():
            results += local_rounds(setting, makes, num_threads=given.workers, blocks=given.blocks)
    report(results, given.json)


if __name__ == "__main__":
    main()
