"""Peak memory of rounds of local training, with separate processes for each side (Linux only).

The baselines are bare loops in processes that import only torch, or torch and Lightning. A page that processes share
counts once (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TORCH, LIGHTNING = "bare loop, torch alone", "bare loop, torch and Lightning"
SIDES = (TORCH, LIGHTNING, "Sequential", "Workers(2)", "Workers(2, Stacked)", "Stacked")
ROUNDS = 4
THREADS = 2


def rounds_of(side: str) -> None:
    """Run some rounds of one side with the CNN of the simulators' comparisons; imports are part of the measurement."""
    import torch

    torch.set_num_threads(THREADS)
    if side == TORCH:
        bare_rounds()
        return
    if side == LIGHTNING:
        import lightning.pytorch  # noqa: F401

        bare_rounds()
        return
    from executors import executors
    from round import Federation
    from work import Setting

    from hetfl.local import Sequential

    setting = Setting("a", size=32, channels=3, cnn=True)
    make = executors(THREADS, setting.cohort).get(side, Sequential)
    federation = Federation(setting, setting.data(), make())
    for number in range(ROUNDS):
        federation.local_training(number)
    federation.close()


def bare_rounds() -> None:
    """Run the rounds without importing hetfl: 10 of 100 clients with 50 images each."""
    from functools import partial

    import torch
    from bare import BareLoop
    from cnn import CNN

    clients = [(torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (50,))) for _ in range(100)]
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    settings = {"mean": 33.3, "std": 78.6, "clip": 1.0, "epochs": 1, "batch_size": 10, "foreach": False}
    tensors = list(CNN().parameters())
    bare = BareLoop({"a": CNN()}, tensors, clients, optimizer=optimizer, **settings)  # type: ignore[arg-type]
    for number in range(ROUNDS):
        bare.round([(10 * number + i, "a", i) for i in range(10)])


def peak(side: str) -> float:
    """Return the peak memory of a process and its children in bytes."""
    process = subprocess.Popen([sys.executable, __file__, "--side", side], cwd=HERE)
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(share, family(process.pid))))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"Expected {side!r} to end well but got exit status {process.returncode}")
    return most


def share(pid: int) -> int:
    """Return the memory of a process in bytes, with pages that n processes share divided by n; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def family(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii").split():
                yield from family(int(child))


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--blocks", type=int, default=3, help="processes of each kind (default: %(default)s)")
    options.add_argument("--side", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        rounds_of(given.side)
        return
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(given.blocks):
        for side, measured in peaks.items():
            measured.append(peak(side) / 2**20)
    table = Table("side", title=f"peak memory, medians of {given.blocks}")
    for column in ("MiB", "over torch alone", "over torch and Lightning"):
        table.add_column(column, justify="right")
    medians = {side: statistics.median(measured) for side, measured in peaks.items()}
    for side, median in medians.items():
        table.add_row(side, f"{median:.0f}", f"{median / medians[TORCH]:.2f}", f"{median / medians[LIGHTNING]:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
