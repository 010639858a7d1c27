"""Checks that runs can be compared: they are finished, and have the same data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetfl.analysis import Run
from hetfl.errors import ConfigurationError
from hetfl.report.groups import ABSENT, Group
from hetfl.runs.headline import common_headline
from hetfl.runs.run_folder import ended_early

NOT_THE_DATA = {"data.seed", "data.eval_batch_size", "data.local_metrics"}
"""Settings of a data module that may differ between compared runs: they do not change the rule of the partition."""


def rounds_done(run: Run) -> int:
    """Return the number of rounds that a run has done."""
    return int(run.metrics["step"].max()) + 1


def rounds_asked(run: Run) -> int | None:
    """Return the number of rounds in the configuration of a run; None if it has none."""
    rounds = (run.config.get("trainer") or {}).get("max_epochs")
    return rounds if isinstance(rounds, int) and rounds >= 0 else None


def unfinished(groups: Sequence[Group]) -> list[tuple[str, Run]]:
    """Return the unfinished runs with the names of their groups; a run that its settings ended early is finished."""
    runs = [(group.name, run) for group in groups for run in group.runs]
    return [(name, run) for name, run in runs if not _has_ended(run)]


def _has_ended(run: Run) -> bool:
    done, asked = rounds_done(run), rounds_asked(run) or 0
    return done >= asked or ended_early(run.folder, done, asked)


def data_settings(group: Group) -> dict[str, str]:
    """Return the settings of the data of a group, without the seed of the partition."""
    return {
        name: value
        for name, value in group.settings.items()
        if (name == "data" or name.startswith("data.")) and name not in NOT_THE_DATA
    }


def differing_data(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Return the data settings that differ from those of the first group with settings.

    A row is the setting, the first group, its value, the other group, and its value.
    """
    known = [(group.name, data_settings(group)) for group in groups if group.settings]
    differences = []
    for name, settings in known[1:]:
        first_name, first = known[0]
        for key in dict.fromkeys([*first, *settings]):
            one, other = first.get(key, ABSENT), settings.get(key, ABSENT)
            if one != other:
                differences.append((key, first_name, one, name, other))
    return differences


def check_comparable(groups: Sequence[Group], *, allow_unfinished: bool, allow_mixed_data: bool) -> None:
    """Refuse runs whose comparison would be wrong.

    Args:
        groups: the groups.
        allow_unfinished: accept runs with fewer rounds than their configuration has.
        allow_mixed_data: accept runs on different data.

    Raises:
        ConfigurationError: runs have different headlines or different data, or a run has no score or is not finished.
    """
    runs = [run for group in groups for run in group.runs]
    headline = common_headline({str(run.folder): run.headline for run in runs})
    column = headline.column("val")
    for run in runs:
        if column not in run.metrics.columns or not np.isfinite(run.series(column)).any():
            raise ConfigurationError(
                f"Expected a finite validation {headline.words} in {run.folder / 'metrics.csv'} but got none"
            )
    short = unfinished(groups)
    if short and not allow_unfinished:
        _, run = short[0]
        raise ConfigurationError(
            f"Expected finished runs but got {rounds_done(run)} of {rounds_asked(run)} rounds in "
            f"{run.folder}: hetfl resume it, or allow it with --unfinished"
        )
    different = differing_data(groups)
    if different and not allow_mixed_data:
        key, first_name, one, name, other = different[0]
        raise ConfigurationError(
            f"Expected runs on the same data but got {key} {one} in {first_name} and {other} in {name}: "
            "allow it with --mixed_data"
        )
