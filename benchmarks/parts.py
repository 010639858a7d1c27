"""Costs of kinds of parts: a round of local training on leading channels, windows, channels per client, and masks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from round import Federation
from timing import Row, interleaved, parser, report, rows, threads
from work import SEED, Setting

from hetfl.local import Sequential, Stacked
from hetfl.local.executor import InProcess
from hetfl.local.jobs import train
from hetfl.part import Part
from hetfl.parts import PartRule, Prefix, RandomChannels, Rolling
from hetfl.seeding import generator

DENSITY = 0.3


class Masked(PartRule):
    """Leading channels with a random mask of their entries."""

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        block = self.levels.indices[level]
        held = torch.rand(block.layout.size, generator=generator(self.seed, "mask", round, client)) < DENSITY
        return Part(block, held)


RULES: dict[str, Callable[[], PartRule]] = {
    "leading channels": Prefix,
    "a window": Rolling,
    "own channels": RandomChannels,
    f"own masks of density {DENSITY}": Masked,
}


def part_rounds(setting: Setting, executor: InProcess, blocks: int) -> list[Row]:
    """Return the times of local rounds by rule, including drawing the parts; leading channels are the baseline.

    Args:
        setting: the work of a round.
        executor: trains the clients.
        blocks: timed blocks.
    """
    with threads(1), closing(Federation(setting, setting.data(), executor)) as federation:
        numbers = dict.fromkeys(RULES, 0)

        def side(name: str, rule: PartRule) -> None:
            numbers[name] += 1
            tasks = setting.tasks(numbers[name])
            drawn = [replace(task, part=rule.part(task.level, task.round, task.client)) for task in tasks]
            list(federation.executor.run(train, drawn))

        rules = {name: make() for name, make in RULES.items()}
        for rule in rules.values():
            rule.meet(federation.levels, SEED)
        seconds = interleaved({name: partial(side, name, rule) for name, rule in rules.items()}, blocks=blocks)
    return rows(f"local round by part, levels {setting.levels}, {type(executor).__name__}", seconds)


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=10)
    options.add_argument("--levels", default="c", help="levels, each a separate case (default: %(default)s)")
    given = options.parse_args()
    results: list[Row] = []
    for level in given.levels:
        results += part_rounds(Setting(level), Sequential(), given.blocks)
        results += part_rounds(Setting(level), Stacked(), given.blocks)
    report(results, given.json)


if __name__ == "__main__":
    main()
