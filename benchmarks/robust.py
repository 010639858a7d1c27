"""Robust rules over PreActResNet-18 slices, as multiples of the time of the holder mean, and their peak memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from aggregation import Uploads, uploads
from timing import Row, interleaved, parser, report, rows, threads
from wire_memory import resident

from hetfl.aggregators import Aggregator, CoordinateMedian, HolderMean, TrimmedMean
from hetfl.part import index_layout
from hetfl.types import Report
from hetfl.updates import DenseUpdate

RULES: dict[str, Callable[[], Aggregator]] = {
    "CoordinateMedian": partial(CoordinateMedian, min_holders=1),
    "TrimmedMean": partial(TrimmedMean, min_holders=1),
}


def played(aggregator: Aggregator, given: Uploads) -> dict[str, torch.Tensor]:
    """Return the steps of a round."""
    aggregator.reset(given.tensors)
    for k, (vector, index, level) in enumerate(zip(given.vectors, given.indices, given.levels, strict=True)):
        aggregator.update(DenseUpdate(vector), index, Report(k, level, samples=1, loss=0.0, flops=0.0))
    return aggregator.compute()[0]


def check(given: Uploads) -> None:
    """Compare the medians with NumPy's over blocks that are NaN at entries that a client does not hold.

    Raises:
        RuntimeError: a median differs.
    """
    steps = played(CoordinateMedian(min_holders=1), given)
    parts = [index_layout(index).views(vector) for index, vector in zip(given.indices, given.vectors, strict=True)]
    for name, tensor in given.tensors.items():
        filled = np.full((len(parts), *tensor.shape), np.nan, dtype=np.float32)
        for block, part in zip(filled, parts, strict=True):
            block[tuple(slice(size) for size in part[name].shape)] = part[name].numpy()
        if not np.allclose(steps[name].numpy(), np.nanmedian(filled, axis=0), rtol=0, atol=1e-6):
            raise RuntimeError(f"Expected NumPy's median over the holders for {name} but got another")


def timed(given: Uploads, *, num_threads: int, blocks: int) -> list[Row]:
    """Return the times of the holder mean and of the rules."""
    sides: dict[str, Aggregator] = {"HolderMean": HolderMean(), **{name: make() for name, make in RULES.items()}}
    works = {name: partial(played, aggregator, given) for name, aggregator in sides.items()}
    with threads(num_threads):
        times = interleaved(works, blocks=blocks, warmup=1)
    plural = "s" if num_threads > 1 else ""
    return rows(f"robust rules, {len(given.vectors)} clients, {num_threads} thread{plural}", times)


def peak(aggregator: Aggregator, given: Uploads) -> int:
    """Return the bytes of a round at its peak, beside the updates that wait."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux then measures the peak anew
    played(aggregator, given)
    return resident("VmHWM") - before


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, default=20, help="number of uploads (default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    given = options.parse_args()
    check(uploads(10, hidden=(8, 16, 32, 64)))
    cohort = uploads(given.clients)
    waiting = sum(vector.nbytes for vector in cohort.vectors)
    print(f"CoordinateMedian at its peak: {peak(CoordinateMedian(), cohort) / waiting:.3f} of the bytes that wait")
    report(timed(cohort, num_threads=given.threads, blocks=given.blocks), given.json)


if __name__ == "__main__":
    main()
