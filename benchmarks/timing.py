"""Timing of several ways of doing the same work, interleaved, and a table of ratios."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hetfl.importing import earlier_objects_frozen


@dataclass(frozen=True)
class Row:
    """One side of a comparison.

    Attributes:
        case: the benchmark and its setting.
        side: name of the side.
        seconds: seconds of each block.
        baseline: seconds of each block of the baseline of the ratios.
    """

    case: str
    side: str
    seconds: Sequence[float]
    baseline: Sequence[float]

    @property
    def ratio_of_medians(self) -> float:
        """The median divided by the median of the baseline."""
        return statistics.median(self.seconds) / statistics.median(self.baseline)

    @property
    def ratio_of_minima(self) -> float:
        """The minimum divided by the minimum of the baseline; a busy machine distorts it least."""
        return min(self.seconds) / min(self.baseline)


def rows(case: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return one row per side; the first side is the baseline."""
    baseline = next(iter(seconds.values()))
    return [Row(case, side, times, baseline) for side, times in seconds.items()]


@contextmanager
def no_collector() -> Iterator[None]:
    """Disable automatic garbage collection, and exclude existing objects from collections."""
    with earlier_objects_frozen():
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads during the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def double_precision() -> Iterator[None]:
    """Make float64 the default dtype during the context, for checks that both sides compute the same."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    *,
    blocks: int,
    warmup: int = 2,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of every side, one entry per block.

    A block runs every side; every second block runs the sides in reverse order. Therefore a slow period of the machine
    affects all sides equally.

    Args:
        sides: the functions to time, by name; the first is the baseline of :func:`rows`.
        blocks: number of timed blocks.
        warmup: number of earlier blocks that are not timed.
        calls: consecutive calls per side and block; the entry of a block is their mean.
        clock: source of seconds; ``time.thread_time`` leaves out other processes, for work of one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    with no_collector():
        for block in range(-warmup, blocks):
            for name, work in order if block % 2 == 0 else reversed(order):
                gc.collect()
                elapsed = 0.0
                for _ in range(calls):
                    start = clock()
                    result = work()
                    elapsed += clock() - start
                    del result  # freeing memory is not timed
                if block >= 0:
                    seconds[name].append(elapsed / calls)
    return seconds


def show(results: Sequence[Row]) -> None:
    """Print a table with a section per case."""
    table = Table("case", "side", title="ratios are against the first side of each case")
    for column in ("median ms", "min ms", "max ms", "ratio of medians", "ratio of minima"):
        table.add_column(column, justify="right")
    last = None
    for row in results:
        if last is not None and row.case != last:
            table.add_section()
        times = [1000 * pick(row.seconds) for pick in (statistics.median, min, max)]
        ratios = (f"{row.ratio_of_medians:.3f}", f"{row.ratio_of_minima:.3f}")
        table.add_row(row.case if row.case != last else "", row.side, *(f"{ms:.3f}" for ms in times), *ratios)
        last = row.case
    console = Console()
    if not console.is_terminal:
        console.width = 140  # rows must not be wrapped in a file
    console.print(table)


def record(results: Sequence[Row]) -> dict[str, object]:
    """Return the times of all blocks, and versions, for JSON."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": [
            {
                "case": row.case,
                "side": row.side,
                "ratio_of_medians": row.ratio_of_medians,
                "ratio_of_minima": row.ratio_of_minima,
                "seconds": list(row.seconds),
            }
            for row in results
        ],
    }


def save(results: Sequence[Row], path: Path) -> None:
    """Write the times of all blocks, and versions, as JSON."""
    path.write_text(json.dumps(record(results), indent=1) + "\n", encoding="utf-8")


def parser(description: str | None, blocks: int = 20) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--blocks", type=int, default=blocks, help="timed blocks (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write all times to a file")
    return made


def report(results: Sequence[Row], path: Path | None) -> None:
    """Print the table, and write the file if a path is given."""
    show(results)
    if path is not None:
        save(results, path)
