"""``--grid KEY=VALUE,VALUE``: every configuration with every combination of values."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from hetfl.compare.plan import Contender
from hetfl.errors import ConfigurationError

SEEDS = ("seed", "seed_everything")
"""Keys whose values are seeds of every configuration, as in ``--seeds``."""
MOST_RUNS = 1000
"""Maximum number of configurations of a grid."""
A_CLASS = re.compile(r"([A-Za-z_]\w*\.)+[A-Z]\w*")
"""The dotted name of a class; ``slow.csv`` and ``0.25`` are none."""


def parse_grid(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the values by key of arguments of the form ``KEY=VALUE,VALUE``; commas in brackets separate nothing.

    Raises:
        ConfigurationError: an argument has another form, or a key or a value occurs twice.

    >>> parse_grid(["model.net.hidden=[4,8],[8,16]", "seed=0,1"])
    {'model.net.hidden': ('[4,8]', '[8,16]'), 'seed': ('0', '1')}
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in given:
        key, equals, values = text.removeprefix("--").partition("=")
        parts = tuple(_parts(values))
        if not equals or not key or not all(parts):
            raise ConfigurationError(f"Expected --grid KEY=VALUE,VALUE but got {text!r}")
        if key in grid or len(set(parts)) < len(parts):
            raise ConfigurationError(f"Expected every key and value once in --grid but got {text!r}")
        grid[key] = parts
    return grid


def _parts(text: str) -> list[str]:
    """Return the parts of a text between the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def seeds_of(grid: dict[str, tuple[str, ...]], given: Sequence[str] | None) -> Sequence[str]:
    """Take the seeds out of a grid, and return them or those of ``--seeds``; without either, 0.

    Raises:
        ConfigurationError: seeds are given twice.
    """
    keys = [key for key in SEEDS if key in grid]
    if len(keys) + (given is not None) > 1:
        raise ConfigurationError(
            f"Expected seeds once but got {' and '.join(['--seeds'] * (given is not None) + keys)}"
        )
    return grid.pop(keys[0]) if keys else given or ["0"]


def spread_out(contenders: Sequence[Contender], grid: dict[str, tuple[str, ...]]) -> list[Contender]:
    """Return every contender with every combination of the grid's values; its name has the values.

    Raises:
        ConfigurationError: there are more than :data:`MOST_RUNS`.

    >>> [each.name for each in spread_out([Contender("w", ("demo",))], {"model.levels.b.width": ("0.5", "0.25")})]
    ['w,b.width=0.5', 'w,b.width=0.25']
    """
    count = math.prod(map(len, grid.values())) * len(contenders)
    if count > MOST_RUNS:
        raise ConfigurationError(f"Expected at most {MOST_RUNS} configurations in a grid but got {count}")
    short = _short_keys(list(grid))
    named = {key: dict(zip(values, _names_of(values), strict=True)) for key, values in grid.items()}
    return [
        replace(
            contender,
            name=",".join([contender.name, *(f"{short[key]}={named[key][value]}" for key, value in swept)]),
            swept=swept,
        )
        for contender in contenders
        for swept in itertools.product(*([(key, value) for value in values] for key, values in grid.items()))
    ]


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the last two parts of each key, or the whole key if two keys have the same."""
    short = {key: ".".join(key.split(".")[-2:]) for key in keys}
    return {key: each if list(short.values()).count(each) == 1 else key for key, each in short.items()}


def _names_of(values: Sequence[str]) -> list[str]:
    """Return a name for each of the distinct values of a key.

    A class is named without its module. Values that would have the same name keep all of their characters that a name
    may have, and their position, from 1, if they still have the same name.

    >>> _names_of(["hetfl.compression.TopK", "[4, 8]", "0.25"])
    ['TopK', '4_8', '0.25']
    >>> _names_of(["mine.Net", "other.Net", "[1]", "1"])
    ['mine.Net-1', 'other.Net-2', '1-3', '1-4']
    """
    short = [value.rpartition(".")[2] if A_CLASS.fullmatch(value) else value for value in values]
    for given in (short, values):
        names = [_in_a_name(value) for value in given]
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{place}" for place, name in enumerate(names, 1)]


def _in_a_name(value: str) -> str:
    """Return a value with only characters that any folder's name may have.

    >>> _in_a_name("[4, 8]"), _in_a_name("slow.csv")
    ('4_8', 'slow.csv')
    """
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in value.replace(" ", "")).strip(
        "_"
    )
