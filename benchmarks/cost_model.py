"""Processor time of a round without local training, as the federation grows, and a model that predicts it.

Curves vary one size at a time: clients of the federation, clients of a round, parameters of the net, and levels. A
model that is linear in six terms is fitted to them (squared relative errors, no negative coefficient). It then predicts
rounds of drawn sizes, which it has not seen. A client that has taken part before has a residual, which costs more than
none; the terms have the expected number of such clients, and of levels that occur in a round. Uplinks are γ-FedHT with
error feedback, residuals are in memory, one thread.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scale import train
from scipy.optimize import nnls
from startup import Idle
from timing import no_collector, threads

from hetfl import HeteroFL, Level
from hetfl.analysis.figures import grid_figure
from hetfl.analysis.theme import group_styles, log_ticks, plain
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.models import MLP
from hetfl.models.layers import scaled
from hetfl.selection import Uniform

PIXELS, CLASSES, SMALLEST = 64, 10, 1 / 16
WARMUP = 3
"""Number of rounds that are not timed."""
ROUNDS = 7
"""Number of rounds that are timed, by default."""
BEFORE = WARMUP + ROUNDS // 2
"""Number of rounds before the middle one of those that are timed."""
TERMS = ("its clients", "all clients", "its levels", "its entries", "its entries with residuals", "parameters")


@dataclass(frozen=True)
class Size:
    """The size of a federation.

    Attributes:
        clients: clients of the federation.
        cohort: clients of a round.
        hidden: width of both hidden layers of the net.
        levels: number of levels, of widths from 1 to 1/16.
    """

    clients: int = 1000
    cohort: int = 100
    hidden: int = 280
    levels: int = 5

    def parameters(self, width: float = 1.0) -> int:
        """Return the number of parameters of a level."""
        hidden = scaled(self.hidden, width)
        return (PIXELS + 3) * hidden + (hidden + 3) * hidden + (hidden + 1) * CLASSES  # with two norms

    def widths(self) -> list[float]:
        """Return the widths of the levels, from the largest."""
        return [SMALLEST ** (k / max(1, self.levels - 1)) for k in range(self.levels)]

    def terms(self) -> list[float]:
        """Return what the cost is linear in, in the order of :data:`TERMS`."""
        levels = self.levels * (1 - (1 - 1 / self.levels) ** self.cohort)
        again = 1 - (1 - self.cohort / self.clients) ** BEFORE
        return [self.cohort, self.clients, levels, self.entries, again * self.entries, self.parameters()]

    @property
    def entries(self) -> float:
        """The expected entries of all clients of a round."""
        return self.cohort * statistics.mean(self.parameters(width) for width in self.widths())


BASE = Size()
CURVES: dict[str, list[Size]] = {
    "clients": [replace(BASE, clients=n) for n in (100, 1000, 10_000, 100_000)],
    "cohort": [replace(BASE, cohort=n) for n in (10, 30, 100, 300, 1000)],
    "parameters": [replace(BASE, cohort=10, hidden=n) for n in (70, 280, 960, 3100, 5500)],
    "levels": [replace(BASE, levels=n) for n in (1, 2, 5, 10, 20)],
}


LABELS = {
    "clients": "clients of the federation",
    "cohort": "clients of a round",
    "parameters": "parameters of the net",
    "levels": "levels",
}


class ProcessorTime(Callback):
    """Records the processor time of every round, with the writing of its row."""

    def __init__(self) -> None:
        self.rounds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        gc.collect()
        self.begin = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time since the start of the round."""
        self.rounds.append(time.process_time() - self.begin)


def seconds_of(size: Size, rounds: int) -> float:
    """Return the median processor time of a round."""
    module = HeteroFL(
        net=lambda width=1.0: MLP(PIXELS, CLASSES, [size.hidden, size.hidden], width=width),
        levels={f"w{k}": Level(f"w{k}", width) for k, width in enumerate(size.widths())},
        selection=Uniform(size.cohort),
        uplink=ErrorFeedback(GammaFedHT(density=0.05)),
        executor=Idle(),
        check_nesting=False,
    )
    watch = ProcessorTime()
    with threads(1), no_collector():
        train(module, size.clients, WARMUP + rounds, watch)
    return statistics.median(watch.rounds[WARMUP:])


def drawn(count: int) -> Iterator[Size]:
    """Yield sizes within the ranges of the curves; no round has more than 4 · 10⁷ entries."""
    choose = random.Random(0)

    def between(low: int, high: int) -> int:
        return round(float(low * (high / low) ** choose.random()))

    while count:
        size = Size(between(100, 100_000), between(10, 1000), between(70, 5500), choose.randint(1, 20))
        if size.cohort <= size.clients and size.entries <= 4e7:
            count -= 1
            yield size


def fitted(sizes: list[Size], seconds: list[float]) -> NDArray[np.float64]:
    """Return the coefficients with the least squared relative errors, none of them negative."""
    rows = np.array([size.terms() for size in sizes]) / np.array(seconds)[:, None]
    scale = rows.max(0)
    coefficients, _ = nnls(rows / scale, np.ones(len(sizes)))
    result: NDArray[np.float64] = coefficients / scale
    return result


def draw(measured: dict[Size, float], coefficients: NDArray[np.float64], path: Path) -> None:
    """Draw the four curves with the model."""
    title, note = "Processor time of a round without training", "Each panel varies one size; the others are the base."
    figure, axes = grid_figure(title, note, len(CURVES), columns=2, side=3.0)
    points, line = group_styles(["measured", "model"]).values()
    for (name, sizes), ax in zip(CURVES.items(), axes, strict=True):
        at = [size.parameters() if name == "parameters" else getattr(size, name) for size in sizes]
        ax.plot(at, [1000 * measured[size] for size in sizes], points.marker, color=points.colour, label="measured")
        ax.plot(at, [1000 * np.dot(size.terms(), coefficients) for size in sizes], **line.line(), label="model")
        ax.set(xscale="log", yscale="log", xlabel=LABELS[name], ylabel="ms a round (log scale)")
        plain(ax)
        log_ticks(ax.xaxis, min(at), max(at))
        log_ticks(ax.yaxis, *ax.get_ylim())
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    options.add_argument("--rounds", type=int, default=ROUNDS, help="timed rounds of a size (default: %(default)s)")
    options.add_argument("--drawn", type=int, default=12, help="sizes that the model predicts (default: %(default)s)")
    options.add_argument("--out", type=Path, help="picture of the curves")
    given = options.parse_args()
    table = Table("", "clients", "a round", "parameters", "levels", "ms a round", "model", "ratio")
    measured: dict[Size, float] = {}

    def row(name: str, size: Size, model: float) -> None:
        counts = (size.clients, size.cohort, size.parameters(), size.levels)
        ratio = model / measured[size]
        table.add_row(name, *map(str, counts), f"{1000 * measured[size]:.1f}", f"{1000 * model:.1f}", f"{ratio:.2f}")

    for size in dict.fromkeys(size for sizes in CURVES.values() for size in sizes):
        measured[size] = seconds_of(size, given.rounds)
    coefficients = fitted(list(measured), list(measured.values()))
    for name, sizes in CURVES.items():
        for size in sizes:
            row(name, size, float(np.dot(size.terms(), coefficients)))
    table.add_section()
    for size in drawn(given.drawn):
        measured[size] = seconds_of(size, given.rounds)
        row("drawn", size, float(np.dot(size.terms(), coefficients)))
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    for term, coefficient in zip(TERMS, coefficients, strict=True):
        console.print(f"{term}: {coefficient * 1e6:.6g} µs each")
    if given.out:
        draw(measured, coefficients, given.out)


if __name__ == "__main__":
    main()
