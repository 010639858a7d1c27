"""A short set of all benchmarks in one table, in under two minutes on two cores."""

from __future__ import annotations

from functools import partial

from aggregation import aggregation, uploads
from compression import upload
from round import Setting, local_rounds, whole_rounds
from startup import empty_rounds
from timing import parser, report

from hetfl.local import Sequential, Workers


def main() -> None:
    """Run from the command line."""
    given = parser(__doc__, blocks=10).parse_args()
    blocks: int = given.blocks
    found = [
        *local_rounds(Setting("d"), Sequential, num_threads=1, blocks=2 * blocks),
        *local_rounds(Setting("d"), partial(Workers, 2), num_threads=2, blocks=max(1, blocks // 2)),
        *whole_rounds(Setting("abcde"), blocks=blocks),
        *empty_rounds(blocks),
        *aggregation(uploads(), num_threads=1, blocks=blocks),
        *upload(1_000_000, 0.01, blocks=blocks),
        *upload(10_000_000, 0.01, blocks=blocks),
    ]
    report(found, given.json)


if __name__ == "__main__":
    main()
