"""A short set of all benchmarks in one table, in under two minutes on two cores."""

from __future__ import annotations

from aggregation import aggregation, uploads
from compression import upload
from executors import executors
from round import local_rounds, whole_rounds
from startup import empty_rounds
from timing import parser, report
from work import Setting

from hetfl.local import Sequential


def main() -> None:
    """Run from the command line."""
    given = parser(__doc__, blocks=10).parse_args()
    blocks: int = given.blocks
    two = {name: make for name, make in executors(2, Setting.cohort).items() if name != "Auto"}
    results = [
        *local_rounds(Setting("d"), {"Sequential": Sequential}, num_threads=1, blocks=2 * blocks),
        *local_rounds(Setting("d"), two, num_threads=2, blocks=max(1, blocks // 2)),
        *whole_rounds(Setting("abcde"), blocks=blocks),
        *empty_rounds(blocks),
        *aggregation(uploads(), num_threads=1, blocks=blocks),
        *upload(1_000_000, 0.01, blocks=blocks),
        *upload(10_000_000, 0.01, blocks=blocks),
    ]
    report(results, given.json)


if __name__ == "__main__":
    main()
