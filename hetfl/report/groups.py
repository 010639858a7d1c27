"""Groups of runs that differ only in their seed, and the settings that differ between groups."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetfl.analysis import Run
from hetfl.errors import ConfigurationError
from hetfl.runs.flat_settings import flat_settings
from hetfl.runs.headline import Headline

SEED_OR_FOLDER = re.compile(r"seed_everything|(model|data)\.seed|trainer\.logger(\[\d+\])?(\..*)?|ckpt_path")
"""Settings in which runs of one group may differ: seeds, folders and the checkpoint to resume from."""

ABSENT = "–"
LONGEST_VALUE = 16
"""Characters of a value of a sweep that a column has."""


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, one per seed.

    Attributes:
        name: name of the group in the report.
        runs: at least one run, in the order of seeds.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def headline(self) -> Headline:
        """The score by which models are compared; the same for all runs of a report."""
        return self.runs[0].headline

    @property
    def settings(self) -> dict[str, str]:
        """The common settings of all runs of the group, in the form of :func:`flat_settings`."""
        return common_settings(self.runs[0])

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seeds of the runs as text."""
        return tuple(seed_of(run) for run in self.runs)


def common_settings(run: Run) -> dict[str, str]:
    """Return the settings of a run without seeds and folders."""
    flat = flat_settings(run.config)
    return {name: value for name, value in flat.items() if not SEED_OR_FOLDER.fullmatch(name)}


def seed_of(run: Run) -> str:
    """Return the seed of a run as text; :data:`ABSENT` if its configuration has none."""
    return str(run.config.get("seed_everything", ABSENT))


def differing_settings(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings that differ between groups, with the value of each group, :data:`ABSENT` for none."""
    rows = _differing([group.settings for group in groups])
    # A setting that is null in one class and missing in another class is no difference.
    return {name: row for name, row in rows.items() if not set(row) <= {ABSENT, "null", ""}}


def swept_settings(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings of a sweep, with the value of each group: those that differ, if all groups have a short one.

    Groups that also differ in settings that only some of them have, such as groups of different methods, have none.
    """
    rows = differing_settings(groups)
    short = all(value != ABSENT and len(_short(value)) <= LONGEST_VALUE for row in rows.values() for value in row)
    return {name: [_short(value) for value in row] for name, row in rows.items()} if short and len(rows) <= 3 else {}


def _differing(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    names = dict.fromkeys(itertools.chain.from_iterable(settings))
    values = {name: [each.get(name, ABSENT) for each in settings] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def group_runs(runs: Sequence[Run], names: Sequence[str | None] | None = None) -> dict[str, list[Run]]:
    """Return groups of runs that differ only in their seed, or that have the same name from the user.

    A group without a name from the user has the name of the folder of its runs. If several groups would have the same
    name, the settings that differ, or a number, are added.

    Args:
        runs: the runs. Runs without a configuration, which were started from Python, are grouped by folder.
        names: the name of the group of each run, or None; None: no run has a name.

    Raises:
        ConfigurationError: two groups still have the same name.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run, name in zip(runs, names or [None] * len(runs), strict=True):
        key: tuple[Any, ...]
        if name is not None:
            key = ("name", name)
        elif run.config:
            key = ("settings", *sorted(common_settings(run).items()))
        else:
            key = ("folder", run.folder.resolve().parent)
        groups.setdefault(key, []).append(run)
    members = list(groups.values())
    fixed = [key[1] if key[0] == "name" else None for key in groups]
    return dict(zip(_unique_names(members, fixed), members, strict=True))


def _unique_names(groups: Sequence[Sequence[Run]], fixed: Sequence[str | None]) -> list[str]:
    """Return unique names of groups; equal names get the differing settings if these are short, or else a number.

    Raises:
        ConfigurationError: two names are still equal.
    """
    wanted = [name or runs[0].folder.resolve().parent.name for name, runs in zip(fixed, groups, strict=True)]
    names = list(wanted)
    for name in dict.fromkeys(wanted):
        same = [position for position, each in enumerate(wanted) if each == name]
        if len(same) > 1:
            marks = _marks(_differing([common_settings(groups[position][0]) for position in same]), len(same))
            for position, mark in zip(same, marks, strict=True):
                names[position] = fixed[position] or f"{name} {mark}"
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"Expected group names that differ but got {name!r} twice: name them, NAME=RUN")
    return names


def _marks(rows: Mapping[str, Sequence[str]], number: int) -> list[str]:
    short = {key: [_short(value) for value in row] for key, row in rows.items()}
    if not 0 < len(short) <= 2 or any(len(value) > 24 for row in short.values() for value in row):
        return [str(position + 1) for position in range(number)]
    keys = [key.rpartition(".")[2] for key in short]
    return [f"({', '.join(f'{key} {row[i]}' for key, row in zip(keys, short.values(), strict=True))})"
            for i in range(number)]  # fmt: skip


def _short(value: str) -> str:
    """Return the name of the class for a class path, and any other value unchanged."""
    return value.rpartition(".")[2] if re.fullmatch(r"([A-Za-z_]\w*\.)+[A-Za-z_]\w*", value) else value


def make_groups(runs: Mapping[str, Sequence[Run]]) -> list[Group]:
    """Return checked groups, with the runs of each in the order of seeds.

    Raises:
        ConfigurationError: there are no runs, a name is not printable, runs of one group differ in more than their
            seed, or a run or a seed occurs twice.
    """
    if not any(runs.values()):
        raise ConfigurationError("Expected at least one run to report on but got none")
    folders: dict[Any, str] = {}
    groups = []
    for name, members in runs.items():
        if not name.strip() or not name.isprintable():
            raise ConfigurationError(f"Expected a group's name to be printable text but got {name!r}")
        if not members:
            raise ConfigurationError(f"Expected at least one run in group {name} but got none")
        for run in members:
            before = folders.setdefault(run.folder.resolve(), name)
            if before != name or sum(run.folder.resolve() == other.folder.resolve() for other in members) > 1:
                raise ConfigurationError(f"Expected every run once but got {run.folder} again")
        _check_group(name, members)
        groups.append(Group(name, tuple(sorted(members, key=_by_seed))))
    return groups


def _by_seed(run: Run) -> tuple[int, str]:
    seed = run.config.get("seed_everything")
    return (seed if isinstance(seed, int) else -1, str(run.folder))


def _check_group(name: str, runs: Sequence[Run]) -> None:
    first = runs[0]
    seeds: dict[str, Run] = {}
    for run in runs:
        rows = _differing([common_settings(first), common_settings(run)])
        if rows:
            key, (one, other) = next(iter(rows.items()))
            raise ConfigurationError(
                f"Expected runs of group {name} to differ only in their seed but got {key} {one} in {first.folder} "
                f"and {other} in {run.folder}"
            )
        seed = seed_of(run)
        if seed != ABSENT and seed in seeds:
            raise ConfigurationError(
                f"Expected one run per seed in group {name} but got seed {seed} in {seeds[seed].folder} and in "
                f"{run.folder}"
            )
        seeds[seed] = run
