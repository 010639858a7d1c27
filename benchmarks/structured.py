"""Structured pruning: a round of local training on a quarter of the channels, and the choice of the channels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from round import Federation
from timing import Row, interleaved, parser, report, rows, threads
from work import SEED, Setting

from hetfl import HeteroFL
from hetfl.levels.level_set import LevelSet
from hetfl.local import Sequential, Stacked
from hetfl.local.executor import InProcess
from hetfl.local.jobs import train
from hetfl.models import PreActResNet
from hetfl.parts import ScoredChannels
from hetfl.piece import Facts
from hetfl.submodel import parameters_of
from hetfl.tree import Tree

QUARTER = "c"
"""The level with a quarter of the channels, of which a ratio of 0.75 is pruned."""


def best_channels(levels: LevelSet, samples: Tree) -> ScoredChannels:
    """Return the rule by the L1 norm of filters, whose groups of channels are known."""
    rule, levels.samples = ScoredChannels(), samples
    rule.meet(levels, SEED)
    rule.setup(Facts(parameters=parameters_of(levels.net)))
    rule.begin_round(0, 0.1)
    return rule


def pruned_rounds(setting: Setting, executor: InProcess, blocks: int) -> list[Row]:
    """Return the times of local rounds on the whole net, the baseline, and on the best quarter of its channels.

    The time of the second includes ranking the channels and drawing the parts.

    Args:
        setting: the work of a round, of one level.
        executor: trains the clients.
        blocks: timed blocks.
    """
    with threads(1), closing(Federation(setting, setting.data(), executor)) as federation:
        rule = best_channels(federation.levels, torch.rand(4, setting.channels, setting.size, setting.size))
        numbers = {"dense": 0, "a quarter of the channels": 0}

        def side(name: str, pruned: bool) -> None:
            numbers[name] += 1
            number = numbers[name]
            tasks = setting.tasks(number)
            if pruned:
                rule.begin_round(number, 0.1)
                drawn = partial(rule.part, QUARTER, number)
                tasks = [replace(task, level=QUARTER, part=drawn(task.client)) for task in tasks]
            list(federation.executor.run(train, tasks))

        sides = {name: partial(side, name, pruned) for name, pruned in zip(numbers, (False, True), strict=True)}
        seconds = interleaved(sides, blocks=blocks)
    return rows(f"local round, {setting.samples} samples, {type(executor).__name__}", seconds)


def choices(blocks: int, hidden: tuple[int, ...] = (64, 128, 256, 512), clients: int = 100) -> list[Row]:
    """Return the times of ranking the channels of ResNet-18 and drawing the parts of clients of five levels.

    Args:
        blocks: timed blocks.
        hidden: channels of the four stages.
        clients: number of clients.
    """
    levels = LevelSet(partial(PreActResNet, hidden=hidden), HeteroFL.default_levels, SEED)
    rule = best_channels(levels, torch.rand(2, 3, 32, 32))
    of_client = [list(levels)[client % len(levels)] for client in range(clients)]

    def norms() -> None:
        for parameter in parameters_of(levels.net).values():
            parameter.detach().abs().sum()

    def choose() -> None:
        rule.begin_round(1, 0.1)
        for client, level in enumerate(of_client):
            rule.check(rule.part(level, 1, client), level)

    sides: dict[str, Callable[[], None]] = {"sum of all absolute values": norms, f"{clients} parts": choose}
    with threads(1):
        return rows("channels of ResNet-18", interleaved(sides, blocks=blocks))


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=10)
    options.add_argument("--samples", type=int, default=50, help="samples per client (default: %(default)s)")
    given = options.parse_args()
    setting = Setting("a", samples=given.samples)
    results = choices(given.blocks)
    for executor in (Sequential(), Stacked()):
        results += pruned_rounds(setting, executor, given.blocks)
    report(results, given.json)


if __name__ == "__main__":
    main()
