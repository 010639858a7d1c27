"""Hand-written runs for the tests of reports and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hetfl.analysis import load_run
from hetfl.report.composing import compose
from hetfl.report.groups import make_groups
from hetfl.report.material import make_material
from hetfl.report.pictures import picture_names
from hetfl.report.rendering import to_markdown
from hetfl.runs.metrics_file import MetricsFile, score_column

ROUNDS = 8


CLIENTS = {"mean": 0.8, "by_samples": 0.78, "std": 0.1, "worst10": 0.4}
"""The final values of the columns ``local/accuracy_*``."""


def settings(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a configuration as in a run folder; ``changes`` replace settings of the model."""
    return {
        "seed_everything": seed,
        "trainer": {
            "max_epochs": ROUNDS,
            "logger": {"class_path": "hetfl.runs.RunFolder", "init_args": {"root": f"/x/{seed}", "name": "n"}},
        },
        "model": {"class_path": "hetfl.HeteroFL", "init_args": {"levels": {"a": {"width": 1.0}}, "lr": 0.1, **changes}},
        "data": {"class_path": "hetfl.data.Digits", "init_args": {"num_clients": 4, "partitioner": None}},
    }


def write_run(
    folder: Path,
    seed: int = 0,
    *,
    top: float = 0.9,
    levels: str = "abc",
    rounds: int = ROUNDS,
    config: Mapping[str, Any] | None = None,
    per_round: Mapping[str, float] | None = None,
    heads: Sequence[str] = (),
    tested: bool = True,
) -> Path:
    """Write a run whose first level ends at ``top``; each further level ends 10 points lower, each seed one higher."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(seed) if config is None else dict(config)))
    file = MetricsFile(folder / "metrics.csv")
    costs = {"comm/up_bytes_total": 1e6, "compute/flops_total": 2e9, "sim/seconds_total": 3.0}
    for step in range(rounds):
        learnt = (step + 1) / rounds
        ends = {level: top - 0.1 * i + 0.01 * seed for i, level in enumerate(levels)} | dict.fromkeys(heads, top - 0.05)
        file.add(
            step,
            {
                "val/accuracy": ends[levels[0]] * learnt,
                **{score_column("val", k): v * learnt for k, v in ends.items()},
            },
        )
        file.add(step, {k: v * (step + 1) for k, v in (costs if per_round is None else per_round).items()})
        file.add(step, {f"local/accuracy_{name}": share * learnt for name, share in CLIENTS.items()})
    if tested:
        file.add(
            rounds - 1,
            {"test/accuracy": ends[levels[0]], **{score_column("test", k): v for k, v in ends.items()}},
        )
    return folder


def write_levels(
    folder: Path,
    parameters: Mapping[str, int],
    flops: Mapping[str, float] | None = None,
    densities: Mapping[str, float] | None = None,
) -> None:
    columns = ["level", "width", "depth", "parameters", "forward_flops", "training_flops", "down_bytes", "up_bytes"]
    rows = [
        [level, 0.5, None, size, size, (flops or parameters)[level], 4 * size, 4 * size]
        for level, size in parameters.items()
    ]
    table = pd.DataFrame(rows, columns=columns)
    if densities is not None:
        table["density"] = table["level"].map(densities)
    table.to_csv(folder / "levels.csv", index=False)


def write_clients(folder: Path, accuracies: Sequence[float | None]) -> None:
    columns = ["client", "level", "train_samples", "test_samples", "accuracy", "own_accuracy"]
    rows = [[i, "a", 10, 0 if a is None else 10, a, a] for i, a in enumerate(accuracies)]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "clients.csv", index=False)


def two_groups(
    root: Path, seeds: Sequence[int] = (0, 1), gap: float = 0.2, levels: str = "abc"
) -> dict[str, list[Path]]:
    """Write runs of two groups that differ in one setting and, by ``gap``, in their accuracy."""
    return {
        "high": [write_run(root / "high" / str(seed), seed, top=0.9, levels=levels) for seed in seeds],
        "low": [
            write_run(root / "low" / str(seed), seed, top=0.9 - gap, levels=levels, config=settings(seed, lr=0.5))
            for seed in seeds
        ],
    }


def text_of(groups: Mapping[str, Sequence[Path]], target: float | None = None) -> str:
    """Return the report as Markdown, without figures."""
    made = make_groups({name: [load_run(folder) for folder in folders] for name, folders in groups.items()})
    material = make_material(made, target)
    return to_markdown(compose(material, picture_names(material.headline)), "plots")


def cells(markdown: str, caption: str) -> list[list[str]]:
    """Return the rows of the Markdown table below a caption."""
    lines = markdown.split(caption, 1)[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if ":--" not in line]
