"""Which runs may stand side by side: finished ones, on the same data."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.analysis import Run
from hetfl.errors import ConfigurationError
from hetfl.report.groups import ABSENT, Group
from hetfl.runs.headline import common_headline
from hetfl.runs.run_folder import ended_early

NOT_THE_DATA = {"data.seed", "data.eval_batch_size", "data.local_metrics"}
"""Settings of a data module that say nothing of which samples there are and whose they are, but for the draw."""


def rounds_done(run: Run) -> int:
    """Return how many rounds a run has behind it."""
    return int(run.metrics["step"].max()) + 1


def rounds_asked(run: Run) -> int | None:
    """Return how many rounds a run's configuration asks for; None where it does not say."""
    rounds = (run.config.get("trainer") or {}).get("max_epochs")
    return rounds if isinstance(rounds, int) and rounds >= 0 else None


def unfinished(groups: Sequence[Group]) -> list[tuple[str, Run]]:
    """Return the runs that have rounds left, with their groups' names; none of those that their settings ended."""
    runs = [(group.name, run) for group in groups for run in group.runs]
    return [(name, run) for name, run in runs if not _has_ended(run)]


def _has_ended(run: Run) -> bool:
    done, asked = rounds_done(run), rounds_asked(run) or 0
    return done >= asked or ended_early(run.folder, done, asked)


def data_settings(group: Group) -> dict[str, str]:
    """Return the settings of a group's data, without the seed of the partition."""
    return {
        name: value
        for name, value in group.settings.items()
        if (name == "data" or name.startswith("data.")) and name not in NOT_THE_DATA
    }


def differing_data(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Return where groups have other data than the first one that says: setting, group, value, group, value."""
    said = [(group.name, data_settings(group)) for group in groups if group.settings]
    differences = []
    for name, settings in said[1:]:
        first_name, first = said[0]
        for key in dict.fromkeys([*first, *settings]):
            one, other = first.get(key, ABSENT), settings.get(key, ABSENT)
            if one != other:
                differences.append((key, first_name, one, name, other))
    return differences


def check_comparable(groups: Sequence[Group], *, allow_unfinished: bool, allow_mixed_data: bool) -> None:
    """Refuse what a report would silently compare wrongly.

    Args:
        groups: the groups.
        allow_unfinished: take runs with fewer rounds than asked for.
        allow_mixed_data: take runs on different data.

    Raises:
        ConfigurationError: runs have different headlines, one has no score, is not finished, or is on other data than
            another one.
    """
    runs = [run for group in groups for run in group.runs]
    headline = common_headline({str(run.folder): run.headline for run in runs})
    column = headline.column("val")
    for run in runs:
        if column not in run.metrics.columns or run.metrics[column].isna().all():
            raise ConfigurationError(
                f"Expected a validation {headline.words} in {run.folder / 'metrics.csv'} but got none: "
                "nothing to report"
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
