"""The numbers of a report as one table for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from hetfl.report.checks import rounds_done
from hetfl.report.groups import Group
from hetfl.report.matching import level_sizes
from hetfl.report.series import BYTES, FLOPS, GLOBAL, SECONDS, column_of, final_amount, value_after
from hetfl.report.spread import spread_of

TOTALS = {
    "up_bytes_total": BYTES.column,
    "down_bytes_total": "comm/down_bytes_total",
    "flops_total": FLOPS.column,
    "seconds_total": SECONDS.column,
}


def summary_table(groups: Sequence[Group], validated: int | None) -> pd.DataFrame:
    """Return a row per group and part: the global model, each level, each head.

    Columns: ``group``, ``part``, ``runs``, ``rounds``; mean and ends of the spread of the ``test`` headline after the
    last round and of the ``val`` headline after ``val_round``, in the unit of ``metrics.csv`` (for accuracy
    ``test_accuracy``, ``test_accuracy_low``, ``test_accuracy_high``); ``parameters`` and ``training_flops`` of a level,
    of the entries that a client holds; mean total costs of the runs of the group. Unknown cells are empty.

    Args:
        groups: the groups.
        validated: the last round, from 0, that all runs of all groups validated; None if there is none.
    """
    return pd.DataFrame([row for group in groups for row in _rows(group, validated)])


def _rows(group: Group, validated: int | None) -> Iterator[dict[str, object]]:
    levels = dict.fromkeys(level for run in group.runs for level in run.levels)
    heads = dict.fromkeys(head for run in group.runs for head in run.heads)
    sizes = level_sizes(group) or {}
    spent = {name: _mean(group, column) for name, column in TOTALS.items()}
    rounds = spread_of([rounds_done(run) for run in group.runs])
    for part in (GLOBAL, *levels, *heads):
        row: dict[str, object] = {"group": group.name, "part": part, "runs": len(group.runs)}
        row["rounds"] = None if rounds is None else rounds.mean
        row["val_round"] = None if validated is None else validated + 1
        # Round -1 does not exist, so without a common round the cells are empty.
        for stage, step in (("test", None), ("val", -1 if validated is None else validated)):
            spread = spread_of([value_after(run, column_of(run, part, stage), step) for run in group.runs])
            for end, name in (("mean", ""), ("low", "_low"), ("high", "_high")):
                row[f"{stage}_{group.headline.name}{name}"] = None if spread is None else getattr(spread, end)
        for cost in ("parameters", "training_flops"):
            row[cost] = sizes[part][cost] if part in sizes else None
        yield {**row, **spent}


def _mean(group: Group, column: str) -> float | None:
    spread = spread_of([final_amount(run, column) for run in group.runs])
    return None if spread is None else spread.mean
