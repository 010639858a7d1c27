"""Rounds of few clients out of very many: the effect of the size of the fleet on time and memory of a round.

Cohort, nets and samples per client are the same for every size; residuals are on disk. The baseline is the smallest
fleet.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from functools import partial

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from memory import allocated, slope

from hetfl import HeteroFL, Level
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import IID, TensorData
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.runs import RunFolder
from hetfl.selection import Uniform
from hetfl.store import DiskStore

SAMPLES = 2
"""Number of samples per client."""


class Clock(Callback):
    """Records the end of each round, and the allocated memory at that time."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.allocated: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record time and memory."""
        self.ends.append(time.perf_counter())
        self.allocated.append(allocated())


def fleet_data(clients: int) -> TensorData:
    """Return random 8 x 8 images for a number of clients, and some of them as test images."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (clients * SAMPLES, 1, 8, 8), generator=random, dtype=torch.uint8)
    targets = torch.randint(10, (clients * SAMPLES,), generator=random)
    return TensorData(
        train_inputs=images,
        train_targets=targets,
        test_inputs=images[:100],
        test_targets=targets[:100],
        num_classes=10,
        num_clients=clients,
        partitioner=IID(),
        val_fraction=0.0,
        local_metrics=False,
    )


def run(clients: int, cohort: int, rounds: int) -> tuple[float, Clock]:
    """Return the seconds before the first round, and the clock of a run."""
    module = HeteroFL(
        net=partial(ConvNet, hidden=(4, 8)),
        levels={"a": Level("a"), "b": Level("b", 0.5)},
        selection=Uniform(cohort),
        local=LocalTraining(epochs=1, batch_size=SAMPLES),
        uplink=ErrorFeedback(TopK(0.05), DiskStore()),
        check_nesting=False,
    )
    return fitted(module, clients, rounds)


def fitted(module: HeteroFL, clients: int, rounds: int) -> tuple[float, Clock]:
    """Train a module without validation; return the seconds before the first round, and the clock."""
    clock = Clock()
    begin = train(module, clients, rounds, clock)
    return clock.ends[0] - begin, clock


def train(module: HeteroFL, clients: int, rounds: int, watch: Callback) -> float:
    """Train a module in a run folder without validation and checkpoints; return when that began.

    Args:
        module: the module.
        clients: number of clients, which have random images.
        rounds: number of rounds.
        watch: a callback that measures.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=rounds,
            accelerator="cpu",
            callbacks=[watch],
            logger=RunFolder(root=folder),
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        begin = time.perf_counter()
        trainer.fit(module, datamodule=fleet_data(clients))
    return begin


def main() -> None:
    """Run from the command line (Linux only)."""
    options = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    options.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000, 100_000], help="sizes of the fleet")
    options.add_argument("--cohort", type=int, default=100, help="clients per round (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=60, help="the first half is warm-up (default: %(default)s)")
    given = options.parse_args()
    torch.set_num_threads(1)
    print(f"{given.cohort} clients a round, {given.rounds} rounds, medians and slopes over the second half")
    baseline: float | None = None
    for clients in given.clients:
        start, clock = run(clients, given.cohort, given.rounds)
        late = slice(given.rounds // 2, None)
        seconds = statistics.median(np.diff(clock.ends)[given.rounds // 2 :].tolist())
        baseline = seconds if baseline is None else baseline
        grown = slope(np.arange(given.rounds)[late], np.array(clock.allocated[late]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{clients:>8} clients: {1000 * seconds:.1f} ms a round ({1000 * (seconds - baseline):+.1f}), first after "
            f"{start:.1f} s, allocated {grown / 1024:+.1f} KiB a round, peak so far {peak:.0f} MiB"
        )


if __name__ == "__main__":
    main()
