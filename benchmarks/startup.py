"""Costs without training: the start of a process, and a round in which no client trains.

The baseline of the start is a process that imports torch and Lightning; that of the round is a step of the demo's net.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scale import train
from timing import Row, interleaved, no_collector, parser, report, rows, threads

from hetfl import HeteroFL
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.local import Executor, Result
from hetfl.local.bench import Bench
from hetfl.local.executor import Job, Recall
from hetfl.local.jobs import report_of
from hetfl.models import ConvNet
from hetfl.selection import Uniform
from hetfl.types import Task

ROOT = Path(__file__).parent.parent
COHORT = 100
WARMUP = 5
"""Number of rounds that are not timed."""


class Idle(Executor):
    """Returns the same noise for all clients of a level, without training."""

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        random = torch.Generator().manual_seed(0)
        self.noise = {level: torch.randn(bench.size(level), generator=random) for level in bench.problem.levels}

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        for task in tasks:
            passes = self.bench.problem.local.epochs * len(self.bench.data.client_data(task.client).targets)
            yield Result(task, report_of(self.bench, task, 0.0, passes, 1), self.noise[task.level].clone())


class Stopwatch(Callback):
    """Times every round, and between rounds a step of a net."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.steps: list[float] = []
        self.net, self.inputs = ConvNet(hidden=(16, 32, 64)), torch.randn(10, 1, 8, 8)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time a step of the net, and start the clock of the round."""
        begin = time.perf_counter()
        self.net(self.inputs).sum().backward()
        self.steps.append(time.perf_counter() - begin)
        self.begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time of the round, including the writing of its row."""
        self.rounds.append(time.perf_counter() - self.begin)


def empty_rounds(blocks: int) -> list[Row]:
    """Return the times of rounds of a hundred clients without training, with γ-FedHT and without checkpoints."""
    module = HeteroFL(
        net=partial(ConvNet, hidden=(16, 32, 64)),
        selection=Uniform(COHORT),
        uplink=ErrorFeedback(GammaFedHT(density=0.05)),
        executor=Idle(),
        check_nesting=False,
    )
    watch = Stopwatch()
    with threads(1), no_collector():
        train(module, COHORT, blocks + WARMUP, watch)
    times = {"a step of the demo's net": watch.steps[WARMUP:], f"a round of {COHORT} clients": watch.rounds[WARMUP:]}
    return rows("a round without training", times)


def starts(blocks: int) -> list[Row]:
    """Return the times of processes that only import, and of a process that trains the first round of the demo."""
    demo = ["fit", "-c", str(ROOT / "configs" / "demo.yaml"), "--trainer.max_epochs=1"]
    with tempfile.TemporaryDirectory() as folder:
        demo += ["--final_test=false", "--plots=false", f"--trainer.logger.root={folder}"]
        code = {
            "import torch, lightning": "import torch, lightning.pytorch",
            "import hetfl": "import hetfl",
            "hetfl fit, the demo's first round": f"from hetfl.cli import main; main({demo!r})",
        }
        times = interleaved({name: partial(_process, line) for name, line in code.items()}, blocks=blocks, warmup=1)
    return rows("starting", times)


def _process(code: str) -> None:
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--starts", type=int, default=5, help="timed processes of each kind (default: %(default)s)")
    given = options.parse_args()
    report([*starts(given.starts), *empty_rounds(given.blocks)], given.json)


if __name__ == "__main__":
    main()
