"""Rounds of local training beside a process that never rests: how far the slowest is from the middle one."""

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
    """Keep a core busy for a while."""
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
    options.add_argument("--levels", default="d", help="levels, each a case of its own (default: %(default)s)")
    given = options.parse_args()
    found = []
    for level in given.levels:
        setting = Setting(level)
        makes = {name: make for name, make in executors(given.workers, setting.cohort).items() if name != "Auto"}
        with neighbour():
            found += local_rounds(setting, makes, num_threads=given.workers, blocks=given.blocks)
    report(found, given.json)


if __name__ == "__main__":
    main()
