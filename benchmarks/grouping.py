"""Processor time of a step of clients that train together relative to one by one, beside the model of ByShape.

One process with one thread. A ratio below 1 says that a group is faster; ``model`` is what :mod:`hetfl.local.by_shape`
expects of it.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from round import Federation
from torch import nn
from work import Setting

from hetfl.local import Executor, Sequential, Stacked
from hetfl.local.by_shape import STEP_COST, TOGETHER
from hetfl.models import MLP, ConvNet, PreActResNet

CONVNET = (64, 128, 256, 512)


@dataclass(frozen=True)
class Case(Setting):
    """One net at one level.

    Attributes:
        kind: the class of the net.
    """

    kind: type[nn.Module] = ConvNet

    def net(self, *, width: float = 1.0) -> nn.Module:
        """Return the net of a width."""
        inputs = self.channels * (self.size**2 if self.kind is MLP else 1)
        return self.kind(in_channels=inputs, hidden=self.hidden, width=width)


CASES = [
    *(Case(level, hidden=CONVNET) for level in "abcde"),
    *(Case(level, hidden=CONVNET, batch_size=32) for level in "bcde"),
    *(Case(level, hidden=CONVNET, batch_size=100) for level in "bd"),
    *(Case(level, hidden=(512, 512), kind=MLP, batch_size=batch) for level in "ac" for batch in (10, 32)),
    *(
        Case(level, hidden=CONVNET, kind=PreActResNet, size=32, channels=3, batch_size=batch)
        for level in "de"
        for batch in (10, 32)
    ),
]


def seconds(case: Case, executor: Executor, repetitions: int) -> tuple[float, int]:
    """Return the least processor time of a round, and the number of entries of the level's net."""
    with closing(Federation(case, case.data(), executor)) as federation:
        size, times = federation.hosting.bench.size(case.levels) if federation.hosting.bench else 0, []
        for number in range(repetitions):
            start = time.process_time()
            federation.local_training(number)
            times.append(time.process_time() - start)
    return min(times), size


def main() -> None:
    """Measure and print all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[2, 5, 10], help="sizes of groups")
    parser.add_argument("--repetitions", type=int, default=4, help="rounds of a case, of which the fastest counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'net':14}{'level':>6}{'batch':>6}{'entries':>10}{'ms/step':>9}  "
        + "  ".join(f"{n} clients (model)" for n in options.clients)
    )
    for case in CASES:
        case = replace(case, clients=10, samples=2 * case.batch_size)
        alone, size = seconds(case, Sequential(), options.repetitions)
        fixed, cells = STEP_COST / case.batch_size, []
        for n in options.clients:
            ratio = seconds(case, Stacked(n), options.repetitions)[0] / alone
            cells.append(f"{ratio:9.2f} ({(fixed / n + TOGETHER * size) / (fixed + size):.2f})  ")
        step = 1e3 * alone / (2 * case.clients)
        print(f"{case.kind.__name__:14}{case.levels:>6}{case.batch_size:6}{size:10}{step:9.2f}  " + "  ".join(cells))


if __name__ == "__main__":
    main()
