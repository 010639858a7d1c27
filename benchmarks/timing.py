"""Time several ways of doing the same work side by side, and show the ratios."""

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


@dataclass(frozen=True)
class Row:
    """One side of a comparison.

    Attributes:
        case: what was compared: the benchmark and its setting.
        side: which way of doing it.
        seconds: one entry per block.
        baseline: the same of the side that ratios are taken against.
    """

    case: str
    side: str
    seconds: Sequence[float]
    baseline: Sequence[float]

    @property
    def ratio_of_medians(self) -> float:
        """The median over the baseline's median."""
        return statistics.median(self.seconds) / statistics.median(self.baseline)

    @property
    def ratio_of_minima(self) -> float:
        """The smallest time over the baseline's smallest: what a busy machine distorts least."""
        return min(self.seconds) / min(self.baseline)


def rows(case: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return one row per side; ratios are taken against the first."""
    baseline = next(iter(seconds.values()))
    return [Row(case, side, times, baseline) for side, times in seconds.items()]


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off, and leave it only what is made from here on."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def double_precision() -> Iterator[None]:
    """Make float64 the default dtype for a while: for checks that both sides compute the same."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def interleaved(
    sides: Mapping[str, Callable[[], object]], *, blocks: int, warmup: int = 2, calls: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every side, one entry per block.

    A block runs every side, every other block in reverse order, so that a slow spell of the machine meets all
    sides alike.

    Args:
        sides: what to run, by name; the first is the baseline of :func:`rows`.
        blocks: number of timed blocks.
        warmup: blocks before them that are not timed.
        calls: calls per side and block, one after the other; a block's entry is their mean.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    with no_collector():
        for block in range(-warmup, blocks):
            for name, work in order if block % 2 == 0 else reversed(order):
                gc.collect()
                elapsed = 0.0
                for _ in range(calls):
                    start = time.perf_counter()
                    result = work()
                    elapsed += time.perf_counter() - start
                    del result  # giving memory back is not part of the work
                if block >= 0:
                    seconds[name].append(elapsed / calls)
    return seconds


def show(found: Sequence[Row]) -> None:
    """Print a table, a section per case."""
    table = Table("case", "side", title="ratios are against the first side of each case")
    for column in ("median ms", "min ms", "max ms", "ratio of medians", "ratio of minima"):
        table.add_column(column, justify="right")
    last = None
    for row in found:
        if last is not None and row.case != last:
            table.add_section()
        times = [1000 * pick(row.seconds) for pick in (statistics.median, min, max)]
        ratios = (f"{row.ratio_of_medians:.3f}", f"{row.ratio_of_minima:.3f}")
        table.add_row(row.case if row.case != last else "", row.side, *(f"{ms:.3f}" for ms in times), *ratios)
        last = row.case
    console = Console()
    if not console.is_terminal:
        console.width = 140  # in a file no row should be folded
    console.print(table)


def save(found: Sequence[Row], path: Path) -> None:
    """Write every time of every block, and the versions, as JSON."""
    record = {
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
            for row in found
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parser(description: str | None, blocks: int = 20) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--blocks", type=int, default=blocks, help="timed blocks (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all times to a file, too")
    return made


def report(found: Sequence[Row], path: Path | None) -> None:
    """Print the table and, if asked, write the file."""
    show(found)
    if path is not None:
        save(found, path)
