"""What a report says in numbers, as one table for other programs."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from hetfl.report.checks import rounds_done
from hetfl.report.groups import Group
from hetfl.report.matching import level_sizes
from hetfl.report.series import BYTES, FLOPS, GLOBAL, SECONDS, final_accuracy, final_amount
from hetfl.report.spread import spread_of

TOTALS = {
    "up_bytes_total": BYTES.column,
    "down_bytes_total": "comm/down_bytes_total",
    "flops_total": FLOPS.column,
    "seconds_total": SECONDS.column,
}


def summary_table(groups: list[Group]) -> pd.DataFrame:
    """Return a row per group and part: the global model, each level, each head.

    Columns: ``group``, ``part``, ``runs``, ``rounds``; of ``test`` and ``val`` accuracy in the last round, shares, the
    mean with the ends of its spread (``test_accuracy``, ``test_accuracy_low``, ``test_accuracy_high``); a level's
    ``parameters`` and ``training_flops``; means of what the group's runs spent. A cell is empty where nothing is known.
    """
    return pd.DataFrame([row for group in groups for row in _rows(group)])


def _rows(group: Group) -> Iterator[dict[str, object]]:
    levels = dict.fromkeys(level for run in group.runs for level in run.levels)
    heads = dict.fromkeys(head for run in group.runs for head in run.heads)
    sizes = level_sizes(group) or {}
    spent = {name: _mean(group, column) for name, column in TOTALS.items()}
    rounds = spread_of([rounds_done(run) for run in group.runs])
    for part in (GLOBAL, *levels, *heads):
        row: dict[str, object] = {"group": group.name, "part": part, "runs": len(group.runs)}
        row["rounds"] = None if rounds is None else rounds.mean
        for stage in ("test", "val"):
            spread = spread_of([final_accuracy(run, part, stage) for run in group.runs])
            for end, name in (("mean", ""), ("low", "_low"), ("high", "_high")):
                row[f"{stage}_accuracy{name}"] = None if spread is None else getattr(spread, end)
        for cost in ("parameters", "training_flops"):
            row[cost] = sizes[part][cost] if part in sizes else None
        yield {**row, **spent}


def _mean(group: Group, column: str) -> float | None:
    spread = spread_of([final_amount(run, column) for run in group.runs])
    return None if spread is None else spread.mean
